"""The name of the call in progress, for the logs, the answer and the change log."""

import re
import uuid
from contextvars import ContextVar
from typing import Final

HEADER: Final = "x-request-id"
"""Metadata in which a caller names its request, and trailing metadata in which the name comes back."""

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
"""The name of the call in progress; empty outside of one."""

_GIVEN: Final = re.compile(r"[\x21-\x7e]{1,128}")


def name_request(given: list[str | bytes]) -> str:
    """The caller's name for its request, if it gave one that may stand in a log; else a new one."""
    if len(given) == 1 and isinstance(given[0], str) and _GIVEN.fullmatch(given[0]):
        return given[0]
    return uuid.uuid4().hex
