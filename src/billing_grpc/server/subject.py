"""What the call in progress asks about, for its line in the log: told once the workspace's id was checked."""

from contextvars import ContextVar

current_subject: ContextVar[str | int | None] = ContextVar("current_subject", default=None)
"""A workspace's id, checked and in lower case; empty where the request names none; of a batch, how many it names. None
before that, so that nothing a caller made up stands in a log."""
