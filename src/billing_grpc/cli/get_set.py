"""`billing-grpc get`, `set` and `inherit`: read and change one workspace's own mode."""

from collections.abc import Callable
from typing import Any, BinaryIO, Final

import click

from billing_grpc import validation
from billing_grpc.cli import exit_codes, json_output, output
from billing_grpc.cli.bulk_set import CHOICES, BulkSet, read_lines
from billing_grpc.cli.options import Call, Connection, Text, WorkspaceId
from billing_grpc.cli.session import open_session
from billing_grpc.errors import InvalidArgument
from billing_grpc.model import BillingMode, BillingModeUpdate, WorkspaceBillingMode

_W: Final = "00000000-0000-4000-8000-000000000002"
_SET_EPILOG: Final = f"""\b
Examples:
  billing-grpc set {_W} byok --reason "pays with its own key from June on"
  billing-grpc set --from ids.txt --mode byok > preview.tsv    # writes nothing
  billing-grpc set --from preview.tsv --yes"""


class _Reason(Text):
    """A reason for the change log."""

    name = "reason"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return validation.reason(super().convert(value, param, ctx))
        except InvalidArgument as error:
            self.fail(error.violations[0].description, param, ctx)


class Actor(Text):
    """The person behind a caller."""

    name = "actor"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text unchanged; raise a usage error if it is too long or not printable."""
        try:
            return validation.actor([super().convert(value, param, ctx)])
        except InvalidArgument as error:
            self.fail(error.violations[0].description, param, ctx)


def _change_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        output.json_option,
        click.option(
            "--validate-only", is_flag=True, help="Check everything, permission and etag included; write nothing."
        ),
        click.option(
            "--etag", type=Text(), default="", help="Write only if this is still the workspace's etag, as shown by get."
        ),
        click.option(
            "--actor",
            type=Actor(),
            default="",
            help="The person on whose behalf, for the change log; at most 128 printable ASCII characters.",
        ),
        click.option(
            "--reason", type=_Reason(), default="", help="The reason for the change log; at most 500 characters."
        ),
    ):
        function = option(function)
    return function


@click.command("get", cls=Call, epilog=f"\b\nExample:\n  billing-grpc get {_W} --json | jq -r .etag")
@click.argument("workspace_id", type=WorkspaceId())
@output.json_option
@click.pass_obj
def get(connection: Connection, *, workspace_id: str, as_json: bool) -> int:
    """Show an existing workspace's mode, its etag, and who set it."""
    with open_session(connection) as session:
        found = session.run(session.client.get(workspace_id))
    if as_json:
        output.json_line(json_output.workspace(found))
    else:
        output.resolution(found.resolution)
        _show_last_change(found)
    return exit_codes.OK


@click.command("set", cls=Call, epilog=_SET_EPILOG)
@click.argument("workspace_id", required=False, type=WorkspaceId())
@click.argument("mode", required=False, type=click.Choice([mode.value for mode in BillingMode]))
@click.option(
    "--from",
    "file",
    type=click.File("rb"),
    help="A file of changes, one a line: an id, or id<TAB>mode, or the output of a preview; - is standard input.",
)
@click.option("--mode", "common", type=click.Choice(CHOICES), help="With --from: the mode of lines that name none.")
@click.option("--yes", is_flag=True, help="With --from: write. Without it, only preview.")
@_change_options
@click.pass_obj
def set_mode(
    connection: Connection,
    /,
    *,
    workspace_id: str | None,
    mode: str | None,
    file: BinaryIO | None,
    common: str | None,
    yes: bool,
    as_json: bool,
    **change: Any,
) -> int:
    """Give a workspace its own mode, or many workspaces with --from.

    It takes effect when the workspace next starts. Setting the same mode again changes nothing.

    --from previews first: each line is id, mode, etag, stored override now, outcome. With --yes it writes each change with
    the etag of its preview, or with that of the file, and leaves out what is so already: after an interruption run the same
    command again. A file with a malformed line changes nothing.
    """
    if file is not None:
        if workspace_id is not None or change.pop("etag") or change.pop("validate_only"):
            raise click.UsageError("--from takes no WORKSPACE_ID, MODE, --etag or --validate-only: the file says them")
        with open_session(connection, writes=yes) as session:
            return BulkSet(session, change, as_json=as_json).run(read_lines(file, common), write=yes)
    if workspace_id is None or mode is None or common is not None or yes:
        raise click.UsageError("give a WORKSPACE_ID and a MODE, or --from; --mode and --yes are for --from")
    with open_session(connection, writes=not change["validate_only"]) as session:
        written = session.run(session.client.set(workspace_id, BillingMode(mode), **change))
    return _show_update(written, as_json=as_json, validate_only=change["validate_only"])


@click.command("inherit", cls=Call, epilog=f'\b\nExample:\n  billing-grpc inherit {_W} --reason "the trial is over"')
@click.argument("workspace_id", type=WorkspaceId())
@_change_options
@click.pass_obj
def inherit(connection: Connection, /, *, workspace_id: str, as_json: bool, **change: Any) -> int:
    """Make a workspace inherit the organisation's default.

    It takes effect when the workspace next starts. May be repeated.
    """
    with open_session(connection, writes=not change["validate_only"]) as session:
        written = session.run(session.client.inherit(workspace_id, **change))
    return _show_update(written, as_json=as_json, validate_only=change["validate_only"])


def _show_update(written: BillingModeUpdate, *, as_json: bool, validate_only: bool) -> int:
    if as_json:
        output.json_line(json_output.update(written, validate_only=validate_only))
        return exit_codes.OK
    output.resolution(written.current.resolution)
    before = f"{written.previous.mode} ({written.previous.source})"
    if validate_only:
        output.line(f"It is {before}. Nothing was written: --validate-only.")
    else:
        output.line(f"It was {before}; the change takes effect when the workspace next starts.")
    _show_last_change(written.current)
    return exit_codes.OK


def _show_last_change(now: WorkspaceBillingMode) -> None:
    if now.update_time is None:
        output.line("No change was ever recorded.")
    else:
        output.line(f"Last changed at {json_output.time(now.update_time)} by {now.updated_by}.")
    output.line(f"etag: {now.etag}")
