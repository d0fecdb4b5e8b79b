"""`billing-grpc run`: starts a command in the environment that its workspace may have."""

import asyncio
import os
import signal
import time
from typing import Final, NoReturn

import click

from billing_grpc import provision
from billing_grpc.client_settings import process_environment
from billing_grpc.commands import outcome
from billing_grpc.commands.asking import Server, asking
from billing_grpc.commands.connection import Call, Connection, WorkspaceId
from billing_grpc.commands.plan import askable
from billing_grpc.model import ProvisionPlan

_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126
_PAUSE: Final = 0.25
"""Seconds between two askings."""

_LEAST: Final = 0.05
"""Seconds that the last asking gets at least."""

_EPILOG: Final = """\b
Examples:
  billing-grpc run --workspace 00000000-0000-4000-8000-000000000002 -- start-workspace --verbose
  billing-grpc run --workspace "$WORKSPACE_ID" --retry-for 20 --require-answer -- start-workspace

\b
Exit codes before COMMAND runs: 2 wrong usage, 3 no answer (--require-answer), 126 not executable, 127 not found.
Afterwards they are COMMAND's: it takes this process's place."""


@click.command("run", cls=Call, epilog=_EPILOG, context_settings={"allow_interspersed_args": False})
@click.option(
    "--workspace",
    "workspace_id",
    required=True,
    type=WorkspaceId(may_be_empty=True),
    help='The workspace; "" for one to be.',
)
@click.option(
    "--retry-for",
    type=click.FloatRange(0, 3600),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="How long to ask for an answer altogether; 0 asks once.",
)
@click.option("--require-answer", is_flag=True, help="Exit with 3 instead of starting without an answer.")
@click.argument("command", metavar="-- COMMAND [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run(
    connection: Connection, *, workspace_id: str, retry_for: float, require_answer: bool, command: tuple[str, ...]
) -> NoReturn:
    """Run a command in the environment that its workspace may have.

    Takes the vendor keys out of the environment unless the workspace pays for itself, tells its billing mode in
    MOLECULE_LLM_BILLING_MODE_RESOLVED, and becomes COMMAND. All else is handed on as it is. When nobody answers within
    --retry-for, the vendor keys are taken out, a warning goes to standard error, and COMMAND starts.
    """
    environment = process_environment()
    with asking(connection, files=False) as server:
        plan = server.wait(_plan(server, workspace_id, askable(environment), retry_for))
        server.warn(plan.resolution)
    if plan.resolution.error is not None and require_answer:
        raise SystemExit(outcome.UNAVAILABLE)
    _become(command, provision.apply(plan, environment))


async def _plan(server: Server, workspace_id: str, names: list[str], retry_for: float) -> ProvisionPlan:
    """The first plan with an answer, or the last one without when the time is up."""
    end = time.monotonic() + retry_for
    limit = retry_for or None
    while True:
        plan = await server.client.plan_provision_env(workspace_id, names, timeout=limit)
        if plan.resolution.error is None or end - time.monotonic() <= _PAUSE:
            return plan
        await asyncio.sleep(_PAUSE)
        limit = max(end - time.monotonic(), _LEAST)


def _become(command: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    # Python ignores these two, and what is ignored stays so in the program that takes its place.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - running what the user names is the purpose
    except (FileNotFoundError, NotADirectoryError):
        outcome.complain(f"{command[0]}: not found in the PATH of its environment")
        raise SystemExit(_NOT_FOUND) from None
    except OSError as error:
        outcome.complain(f"{command[0]}: cannot be run: {error.strerror}")
        raise SystemExit(_NOT_EXECUTABLE) from None
