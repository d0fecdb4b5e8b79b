"""`billing-grpc changes`: list the change log."""

from typing import Final

import click

from billing_grpc.cli import exit_codes, json_output, output
from billing_grpc.cli.options import Call, Connection, WorkspaceId
from billing_grpc.cli.session import Session, open_session
from billing_grpc.model import Change, ChangeKind, author
from billing_grpc.validation import DEFAULT_PAGE, MAX_PAGE

_MOST: Final = 1_000_000
_COLUMNS: Final[tuple[str, ...]] = ("when", "workspace", "from", "to", "who", "why")
_INHERITED: Final = "(inherits)"
_UNSET: Final = "(unset)"
_ORG_DEFAULT: Final = "(org default)"
_EPILOG: Final = """\b
Examples:
  billing-grpc changes --limit 10
  billing-grpc changes 00000000-0000-4000-8000-000000000002 --json | jq -r 'select(.principal == "") | .database_user'"""


@click.command("changes", cls=Call, epilog=_EPILOG)
@click.argument("workspace_id", required=False, default="", type=WorkspaceId(may_be_empty=True))
@click.option(
    "--limit", type=click.IntRange(1, _MOST), default=DEFAULT_PAGE, show_default=True, help="The most changes to list."
)
@click.option(
    "--kind",
    type=click.Choice([each.value for each in ChangeKind]),
    help="Only changes of workspaces, or only of the organisation's default.",
)
@output.json_option
@click.pass_obj
def changes(connection: Connection, *, workspace_id: str, limit: int, kind: str | None, as_json: bool) -> int:
    """List who changed what, and why, newest first.

    Without a WORKSPACE_ID, list the changes of all workspaces and of the
    organisation's default. Each line: when, workspace, from, to, who, why. With --json,
    each change is an object on its own line.
    """
    with open_session(connection) as session:
        found = session.run(_newest(session, workspace_id, limit, None if kind is None else ChangeKind(kind)))
    if as_json:
        for each in found:
            output.json_line(json_output.change(each))
    else:
        _show(found, of_one=bool(workspace_id))
    return exit_codes.OK


async def _newest(session: Session, workspace_id: str, limit: int, kind: ChangeKind | None) -> list[Change[str]]:
    found: list[Change[str]] = []
    async for each in session.client.changes(workspace_id, kind=kind, page_size=min(limit, MAX_PAGE)):
        found.append(each)
        if len(found) == limit:
            break
    return found


def _show(found: list[Change[str]], *, of_one: bool) -> None:
    columns, rows = _COLUMNS, [_row(each) for each in found]
    if of_one and output.is_terminal():
        # The caller named the workspace, and a narrow terminal has little room.
        columns, rows = columns[:1] + columns[2:], [row[:1] + row[2:] for row in rows]
    output.table(columns, rows, prose=frozenset({"why"}))


def _row(each: Change[str]) -> tuple[str, ...]:
    before, after = (_INHERITED if text is None else text for text in (each.previous_override, each.new_override))
    who = author(each.principal, each.database_user)
    who = f"{who} ({each.actor})" if each.actor else who
    if each.kind is ChangeKind.ORG_DEFAULT:
        before, after = (_UNSET if text is None else text for text in (each.previous_override, each.new_override))
        who = f"server {each.server} ({each.origin})"
    return (
        json_output.time(each.change_time.replace(microsecond=0)),
        each.workspace_id or _ORG_DEFAULT,
        before,
        after,
        who,
        each.reason,
    )
