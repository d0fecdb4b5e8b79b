"""`billing-grpc list`: list the workspaces of the organisation."""

from typing import Any, Final

import click

from billing_grpc.cli import exit_codes, json_output, output
from billing_grpc.cli.options import Call, Connection, Text
from billing_grpc.cli.session import Session, open_session
from billing_grpc.model import BillingMode, BillingModeSource, OverrideFilter, WorkspaceBillingMode
from billing_grpc.validation import MAX_WORKSPACES_PAGE

_EPILOG: Final = """\b
Examples:
  billing-grpc list --mode byok
  billing-grpc list --unrecognised                      # what is corrupt
  billing-grpc list --org-default byok --would-change   # what if"""


@click.command("list", cls=Call, epilog=_EPILOG)
@click.option("--mode", type=click.Choice([each.value for each in BillingMode]), help="Only workspaces of this mode.")
@click.option(
    "--source",
    type=click.Choice([each.value for each in BillingModeSource]),
    help="Only workspaces whose mode this rule decides.",
)
@click.option("--overrides", is_flag=True, help="Only workspaces with an override.")
@click.option("--unrecognised", is_flag=True, help="Only workspaces whose override is not a mode.")
@click.option(
    "--org-default",
    type=Text(),
    metavar="MODE",
    help="Assume this default of the organisation instead of the published one.",
)
@click.option("--would-change", is_flag=True, help="Only workspaces whose mode --org-default would change.")
@click.option("--limit", type=click.IntRange(min=1), help="The most workspaces to list; all without it.")
@output.json_option
@click.pass_obj
def list_workspaces(connection: Connection, /, *, limit: int | None, as_json: bool, **filters: Any) -> int:
    """List the existing workspaces, in the order of their ids.

    Each line: workspace, mode, source, stored override, name, and who set it. With --json, each workspace is an object on
    its own line.
    """
    if filters["would_change"] and filters["org_default"] is None:
        raise click.UsageError("--would-change needs --org-default: it compares with a default to suppose")
    overrides, unrecognised = filters.pop("overrides"), filters.pop("unrecognised")
    if overrides or unrecognised:
        filters["override"] = OverrideFilter.UNRECOGNISED if unrecognised else OverrideFilter.PRESENT
    with open_session(connection) as session:
        unreadable = session.run(_show_all(session, limit, filters, as_json=as_json))
    exit_codes.flush()
    if unreadable:
        exit_codes.print_error(
            f"{unreadable} with an override that cannot be read, taken as platform_managed for safety"
        )
    return exit_codes.OK


async def _show_all(session: Session, limit: int | None, filters: dict[str, Any], *, as_json: bool) -> int:
    """Show the workspaces as they come; return how many have an override that cannot be read."""
    unreadable = shown = 0
    size = min(limit or MAX_WORKSPACES_PAGE, MAX_WORKSPACES_PAGE)
    async for each in session.client.workspaces(**filters, page_size=size):
        _show(each, as_json=as_json)
        unreadable += each.resolution.error is not None
        shown += 1
        if shown == limit:
            break
    return unreadable


def _show(each: WorkspaceBillingMode, *, as_json: bool) -> None:
    if as_json:
        output.json_line(json_output.listed(each))
        return
    found = each.resolution
    stored = found.workspace_override or "" if found.error is None else found.error.reason
    cells = [
        (found.workspace_id, 36),
        (found.mode.value, 16),
        (found.source.value, 18),
        (stored, 16),
        (each.name, 16),
        (each.updated_by, 0),
    ]
    output.row(cells, output.STYLES[found.mode.value] if found.error is None else "bold red")
