"""`billing-grpc summary`: count the workspaces of the organisation."""

from typing import Final

import click

from billing_grpc.cli import exit_codes, json_output, output
from billing_grpc.cli.options import Call, Connection, Text
from billing_grpc.cli.session import open_session
from billing_grpc.model import BillingModeSummary

_EPILOG: Final = """\b
Examples:
  billing-grpc summary
  billing-grpc summary --org-default byok    # what if"""


@click.command("summary", cls=Call, epilog=_EPILOG)
@click.option(
    "--org-default", type=Text(), metavar="MODE", help="Also count what this default of the organisation would change."
)
@output.json_option
@click.pass_obj
def summary(connection: Connection, *, org_default: str | None, as_json: bool) -> int:
    """Count the existing workspaces by mode and source, as of one moment.

    For a script, each line is: `count`, mode, source, workspaces; or `move`, mode now, mode then, workspaces; or
    `unrecognised`, two empty columns, workspaces.
    """
    with open_session(connection) as session:
        found = session.run(session.client.summary(org_default=org_default))
    if as_json:
        output.json_line(json_output.summary(found))
    elif output.is_terminal():
        _show(found, org_default)
    else:
        _show_rows(found)
    return exit_codes.OK


def _show(found: BillingModeSummary, org_default: str | None) -> None:
    output.table(
        ("mode", "source", "workspaces"),
        [(each.mode.value, each.source.value, f"{each.workspaces:>10}") for each in found.counts],
    )
    at = json_output.time(found.read_time.replace(microsecond=0))
    output.line(f"{found.workspaces} workspaces at {at}; the organisation's default is {found.org_default}.")
    if found.unrecognised_overrides:
        listed = "billing-grpc list --unrecognised"
        output.line(f"{found.unrecognised_overrides} have an override that is not a mode or unreadable: see {listed}")
    for each in found.moves:
        moved = f"{each.workspaces} would go from {each.from_mode} to {each.to_mode}"
        output.line(f'With "{org_default}" as the default, {moved}.')
    if org_default is not None and not found.moves:
        output.line(f'With "{org_default}" as the default, no workspace would change.')


def _show_rows(found: BillingModeSummary) -> None:
    for each in found.counts:
        output.row([("count", 0), (each.mode.value, 0), (each.source.value, 0), (str(each.workspaces), 0)])
    for move in found.moves:
        output.row([("move", 0), (move.from_mode.value, 0), (move.to_mode.value, 0), (str(move.workspaces), 0)])
    output.row([("unrecognised", 0), ("", 0), ("", 0), (str(found.unrecognised_overrides), 0)])
