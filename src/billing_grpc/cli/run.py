"""`billing-grpc run`: start a command in the environment that its workspace may have."""

import os
import signal
from typing import Final, NoReturn

import click

from billing_grpc import provision
from billing_grpc.cli import exit_codes
from billing_grpc.cli.environment import environment_bytes, process_environment
from billing_grpc.cli.options import Call, Connection, Seconds, WorkspaceId
from billing_grpc.cli.session import open_session

_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126

_EPILOG: Final = """\b
Examples:
  billing-grpc run --workspace 00000000-0000-4000-8000-000000000002 -- start-workspace --verbose
  billing-grpc run --workspace "$WORKSPACE_ID" --retry-for 20 --require-answer -- start-workspace

\b
Exit codes before COMMAND runs: 2 wrong usage, 3 no answer (--require-answer), 126 not executable, 127 not found.
COMMAND then replaces this process, so later exit codes are its own."""


@click.command("run", cls=Call, epilog=_EPILOG, context_settings={"allow_interspersed_args": False})
@click.option(
    "--workspace",
    "workspace_id",
    required=True,
    type=WorkspaceId(may_be_empty=True),
    help='The workspace; "" for one that does not exist yet.',
)
@click.option(
    "--retry-for",
    type=Seconds(zero=True),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="How long to ask for an answer in total; 0 asks once.",
)
@click.option("--require-answer", is_flag=True, help="Without an answer, exit with 3 and do not start COMMAND.")
@click.argument("command", metavar="-- COMMAND [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run(
    connection: Connection, *, workspace_id: str, retry_for: float, require_answer: bool, command: tuple[str, ...]
) -> NoReturn:
    """Run a command in the environment that its workspace may have.

    Remove the vendor keys from the environment if the workspace is platform_managed, set its billing mode in
    MOLECULE_LLM_BILLING_MODE_RESOLVED, and become COMMAND. All other variables stay as they are. Without an answer within
    --retry-for, remove the vendor keys, print a warning to standard error, and start COMMAND.
    """
    environment = process_environment()
    with open_session(connection, files=False) as session:
        plan = session.run(session.client.plan_provision_env(workspace_id, list(environment), retry_for=retry_for))
        if plan.resolution.error is not None and require_answer:
            why = session.why_fallback(plan.resolution.error)
            raise exit_codes.Failed(f"no answer, so {command[0]} was not started: {why}", exit_codes.UNAVAILABLE)
        session.warn(plan.resolution)
    _exec(command, provision.apply(plan, environment))


def _exec(command: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    # Python ignores these two signals, and the new program would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if not command[0]:
        exit_codes.print_error("the command's name is empty")
        raise SystemExit(_NOT_FOUND)
    try:
        os.execvpe(command[0], command, environment_bytes(environment))  # noqa: S606 - running the user's command is the purpose
    except (FileNotFoundError, NotADirectoryError):
        exit_codes.print_error(f"{command[0]}: not found in the PATH of its environment")
        raise SystemExit(_NOT_FOUND) from None
    except OSError as error:
        exit_codes.print_error(f"{command[0]}: cannot be run: {error.strerror}")
        raise SystemExit(_NOT_EXECUTABLE) from None
