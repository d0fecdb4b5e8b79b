"""Whether nothing was written half: the rows and their log against what callers were told."""

from collections.abc import Iterable

import psycopg

from tests.faults.calls import SET, TRUTH, Call


def half_writes(url: str, calls: Iterable[Call]) -> list[str]:
    """What contradicts: an acknowledged change without its entry, an entry too many, a column that is not its log's end."""
    with psycopg.connect(url) as connection:
        entries = connection.execute(
            "SELECT workspace_id::text, previous_override, new_override, reason FROM workspace_billing_mode_changes"
            " WHERE length(reason) < 600 ORDER BY change_id"
        ).fetchall()
        columns = connection.execute("SELECT id::text, llm_billing_mode FROM workspaces").fetchall()
    recorded: dict[str | None, int] = {}
    ends: dict[str | None, str | None] = {}
    found = []
    for workspace, previous, new, reason in (map(_text, row) for row in entries):
        recorded[reason] = recorded.get(reason, 0) + 1
        if workspace in ends and ends[workspace] != previous:
            found.append(f"{workspace}: an entry begins with {previous}, the one before ended with {ends[workspace]}")
        ends[workspace] = new
    found += [
        f"{workspace}: the column says {text}, its log {ends.get(workspace)}"
        for workspace, text in (map(_text, row) for row in columns)
        if ends.get(workspace) != text
    ]
    for call in calls:
        if call.rpc != SET:
            continue
        times = recorded.get(call.token, 0)
        if times > 1 or (call.verdict == TRUTH and times != int(bool(call.changed))):
            found.append(f"{call.token.split()[0]}: {call.verdict}, changed {call.changed}, entries {times}")
    return found


def _text(value: str | bytes | None) -> str | None:
    """As a database that takes any bytes gives them."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
