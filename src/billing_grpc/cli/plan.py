"""`billing-grpc plan`: show what a workspace's container loses and gets."""

from collections.abc import Iterable
from typing import Final

import click

from billing_grpc.cli import exit_codes, json_output, output
from billing_grpc.cli.environment import process_environment
from billing_grpc.cli.options import Call, Connection, Text, WorkspaceId
from billing_grpc.cli.session import open_session
from billing_grpc.model import ProvisionPlan
from billing_grpc.provision import removed

_EPILOG: Final = """\b
Examples:
  billing-grpc plan --workspace 00000000-0000-4000-8000-000000000002 OPENAI_API_KEY openai_api_key
  billing-grpc plan --env-from-current --json | jq -r '.present_keys[]'"""


@click.command("plan", cls=Call, epilog=_EPILOG)
@click.argument("env_keys", metavar="[KEY]...", nargs=-1, type=Text())
@click.option(
    "--workspace",
    "workspace_id",
    type=WorkspaceId(may_be_empty=True),
    default="",
    help="The workspace; omit it for a workspace that does not exist yet.",
)
@click.option("--env-from-current", is_flag=True, help="Take the names from this shell's environment instead of KEYs.")
@output.json_option
@click.pass_obj
def plan(
    connection: Connection, *, env_keys: tuple[str, ...], workspace_id: str, env_from_current: bool, as_json: bool
) -> int:
    """Show what a workspace's container loses and gets.

    KEYs are the names in its environment, never values; without one, every name that is blocked is shown. Each line: strip,
    a name, present or absent; suspect, a name that looks like a vendor's, stays; set, a name, its value; proxy, yes or no;
    catalogue, the set, its version and digest. `run` applies the plan.
    """
    if env_from_current and env_keys:
        raise click.UsageError("give KEYs or --env-from-current, not both")
    held = list(process_environment()) if env_from_current else list(env_keys)
    with open_session(connection) as session:
        made = session.run(session.client.plan_provision_env(workspace_id, held if held or env_from_current else None))
        present = present_keys(made, held)
        if as_json:
            output.json_line(json_output.provision_plan(made, present))
        else:
            _show(made, present)
        exit_codes.flush()
        session.warn(made.resolution)
        session.warn_of_catalogue(made.catalogue)
    return exit_codes.OK if made.resolution.error is None else exit_codes.UNAVAILABLE


def present_keys(plan: ProvisionPlan, held: Iterable[str]) -> list[str]:
    """Return which of these names the plan removes, sorted, without those that it sets."""
    return sorted(removed(plan, held) - plan.set_env.keys())


def _show(plan: ProvisionPlan, present: list[str]) -> None:
    if output.is_terminal():
        output.resolution(plan.resolution)
    every = sorted({*plan.strip_keys, *present})
    rows = [("strip", key, "present" if key in present else "absent") for key in every]
    rows += [("suspect", key, "stays") for key in plan.suspect_keys]
    rows += [("set", name, value) for name, value in sorted(plan.set_env.items())]
    rows.append(("proxy", "", "yes" if plan.route_via_platform_proxy else "no"))
    if plan.catalogue is not None:
        rows.append(("catalogue", plan.catalogue.set, f"{plan.catalogue.version} {plan.catalogue.digest}"))
    output.table(("do", "name", "value"), rows)
