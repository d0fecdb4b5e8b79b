"""`billing-grpc resolve`: say who pays for one workspace, or for each workspace of a file."""

from typing import Any, BinaryIO, Final

import click

from billing_grpc.cli import exit_codes, json_output, output
from billing_grpc.cli.id_lines import IdLines, Progress
from billing_grpc.cli.options import Call, Connection, Text, WorkspaceId
from billing_grpc.cli.session import Session, open_session
from billing_grpc.model import Resolution
from billing_grpc.validation import MAX_BATCH

_EPILOG: Final = """\b
Examples:
  billing-grpc resolve 00000000-0000-4000-8000-000000000002
  billing-grpc resolve "" --org-default byok        # what if, for a workspace that does not exist yet
  psql -Atc 'SELECT id FROM workspaces' | billing-grpc resolve --file - --json | jq -r .resolved_mode"""


@click.command("resolve", cls=Call, epilog=_EPILOG)
@click.argument("workspace_id", required=False, type=WorkspaceId(may_be_empty=True))
@click.option(
    "--file",
    type=click.File("rb"),
    help="A file of ids, one a line; - is standard input. Lines that begin with # are skipped.",
)
@click.option(
    "--org-default",
    type=Text(),
    metavar="MODE",
    help="Assume this default of the organisation instead of the published one.",
)
@output.json_option
@click.pass_obj
def resolve(
    connection: Connection, *, workspace_id: str | None, file: BinaryIO | None, org_default: str | None, as_json: bool
) -> int:
    """Say who pays for workspaces, and why.

    An empty id ("") asks for a workspace that does not exist yet. With --file, each answer is a line: id, mode, source, the
    reason of an error, and the stored override. With --json, each answer is an object on its own line.
    """
    if (workspace_id is None) == (file is None):
        raise click.UsageError("give a WORKSPACE_ID or --file, not both")
    with open_session(connection) as session:
        if file is not None:
            return _resolve_all(session, IdLines(file), org_default, as_json=as_json)
        answer = session.run(session.client.resolve(workspace_id or "", org_default=org_default))
        _show(answer, as_json=as_json)
        exit_codes.flush()
        session.warn(answer)
        return exit_codes.OK if answer.error is None else exit_codes.UNAVAILABLE


def _show(answer: Resolution, *, as_json: bool) -> None:
    if as_json:
        output.json_line(json_output.resolution(answer))
        return
    output.resolution(answer)


def _resolve_all(session: Session, ids: IdLines, org_default: str | None, *, as_json: bool) -> int:
    fallbacks: dict[str, int] = {}
    with Progress(ids.total) as progress:
        for batch in ids.batches(MAX_BATCH):
            answers = session.run(session.client.resolve_many(batch, org_default=org_default))
            for each in answers:
                if each.error is not None:
                    why = session.why_fallback(each.error)
                    fallbacks[why] = fallbacks.get(why, 0) + 1
                _show_row(each, as_json=as_json)
            exit_codes.flush()
            progress.advance(len(batch))
    for why, count in fallbacks.items():
        exit_codes.print_error(f"{count} without an answer, taken as platform_managed for safety: {why}")
    for problem in ids.problems:
        exit_codes.print_error(problem)
    if fallbacks:
        return exit_codes.UNAVAILABLE
    return exit_codes.USAGE if ids.problems else exit_codes.OK


def _show_row(each: Resolution, *, as_json: bool) -> None:
    if as_json:
        output.json_line(json_output.resolution(each))
        return
    error = "" if each.error is None else each.error.reason
    cells: list[Any] = [
        (each.workspace_id, 36),
        (each.mode.value, 16),
        (each.source.value, 18),
        (error, 0),
        (each.workspace_override or "", 0),
    ]
    output.row(cells, output.STYLES[each.mode.value] if each.error is None else "bold red")
