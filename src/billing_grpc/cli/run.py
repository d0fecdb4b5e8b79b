"""`billing-grpc run`: starts a command in the environment that its workspace may have."""

import asyncio
import os
import signal
import time
from typing import Final, NoReturn

import click

from billing_grpc import provision
from billing_grpc.cli import exit_codes
from billing_grpc.cli.environment import environment_bytes, process_environment
from billing_grpc.cli.options import Call, Connection, Seconds, WorkspaceId
from billing_grpc.cli.session import Session, open_session
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
    type=Seconds(zero=True),
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
    with open_session(connection, files=False) as session:
        budget = _Budget(retry_for, connection.timeout)
        plan = session.run(_plan(session, workspace_id, list(environment), budget))
        if plan.resolution.error is not None and require_answer:
            why = session.why_fallback(plan.resolution.error)
            raise exit_codes.Failed(f"no answer, so {command[0]} was not started: {why}", exit_codes.UNAVAILABLE)
        session.warn(plan.resolution)
    _exec(command, provision.apply(plan, environment))


class _Budget:
    """The seconds there are for all askings, and how many of them one may take; None for as many as there are."""

    def __init__(self, altogether: float, each: float | None) -> None:
        self._end = time.monotonic() + altogether
        self._each = each
        self._once = not altogether

    def limit(self) -> float | None:
        """What the next asking may take; None for what the client says."""
        if self._once:
            return None
        left = max(self._end - time.monotonic(), _LEAST)
        return left if self._each is None else min(left, self._each)

    def over(self) -> bool:
        """Whether there is no time to ask again."""
        return self._end - time.monotonic() <= _PAUSE


async def _plan(session: Session, workspace_id: str, names: list[str], budget: _Budget) -> ProvisionPlan:
    """The first plan with an answer, or the last one without when the time is up."""
    while True:
        plan = await session.client.plan_provision_env(workspace_id, names, timeout=budget.limit())
        if plan.resolution.error is None or budget.over():
            return plan
        await asyncio.sleep(_PAUSE)


def _exec(command: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    # Python ignores these two, and what is ignored stays so in the program that takes its place.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if not command[0]:
        exit_codes.print_error("an empty name is no command")
        raise SystemExit(_NOT_FOUND)
    try:
        os.execvpe(command[0], command, environment_bytes(environment))  # noqa: S606 - running what the user names is the purpose
    except (FileNotFoundError, NotADirectoryError):
        exit_codes.print_error(f"{command[0]}: not found in the PATH of its environment")
        raise SystemExit(_NOT_FOUND) from None
    except OSError as error:
        exit_codes.print_error(f"{command[0]}: cannot be run: {error.strerror}")
        raise SystemExit(_NOT_EXECUTABLE) from None
