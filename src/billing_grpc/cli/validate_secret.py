"""`billing-grpc validate-secret`: say whether secrets may be stored under these names."""

from typing import Final

import click

from billing_grpc import validation
from billing_grpc.cli import exit_codes, json_output, output
from billing_grpc.cli.options import Call, Connection, WorkspaceId
from billing_grpc.cli.session import open_session
from billing_grpc.errors import InvalidArgument
from billing_grpc.model import SecretVerdict, SecretWriteDecision

_EPILOG: Final = """\b
Examples:
  billing-grpc validate-secret --workspace 00000000-0000-4000-8000-000000000002 OPENAI_API_KEY
  billing-grpc validate-secret --org-wide OPENAI_API_KEY HF_TOKEN && store-them"""


@click.command("validate-secret", cls=Call, epilog=_EPILOG)
@click.argument("secret_keys", metavar="KEY...", nargs=-1, required=True)
@click.option(
    "--workspace",
    "workspace_id",
    type=WorkspaceId(may_be_empty=True),
    help="The workspace; omit it for one that does not exist yet.",
)
@click.option("--org-wide", is_flag=True, help="Store them for the whole organisation instead.")
@output.json_option
@click.pass_obj
def validate_secret(
    connection: Connection, *, secret_keys: tuple[str, ...], workspace_id: str | None, org_wide: bool, as_json: bool
) -> int:
    """Say whether secrets may be stored under these names.

    Give names only, never a value. Each line: name, verdict, and the remedy. The exit code is 1 if a name is refused, and 3
    if it is refused because the server gave no answer. In an outage, names that are not listed stay allowed.
    """
    if org_wide and workspace_id is not None:
        raise click.UsageError("give --workspace or --org-wide, not both")
    try:
        validation.secret_names(secret_keys)
    except InvalidArgument as error:
        raise click.BadParameter(str(error), param_hint="'KEY...'") from error
    with open_session(connection) as session:
        decision = session.run(
            session.client.validate_secret_write(secret_keys, workspace_id=workspace_id or "", org_wide=org_wide)
        )
        if as_json:
            output.json_line(json_output.secret_write(decision))
        else:
            rows = [(each.secret_key, each.verdict.value, each.message) for each in decision.verdicts]
            output.table(("key", "verdict", "message"), rows, prose=frozenset({"message"}))
        exit_codes.flush()
        if decision.resolution is not None:
            session.warn(decision.resolution)
    return _exit_code(decision)


def _exit_code(decision: SecretWriteDecision) -> int:
    if decision.allowed:
        return exit_codes.OK
    # A reserved name is refused in every mode, so a retry cannot help.
    reserved = any(each.verdict is SecretVerdict.BLOCKED_RESERVED for each in decision.verdicts)
    degraded = decision.resolution is not None and decision.resolution.error is not None
    return exit_codes.UNAVAILABLE if degraded and not reserved else exit_codes.REFUSED
