"""The command line: its commands, each loaded when it is used, their common options, and the exit codes."""

import ast
import sys
from difflib import get_close_matches
from importlib import import_module
from pkgutil import get_data, resolve_name
from typing import Any, Final, NoReturn

import click

from billing_grpc import __version__
from billing_grpc.cli import exit_codes
from billing_grpc.cli.environment import load_client_settings, process_environment, quieten_grpc
from billing_grpc.cli.options import Connection, connection_options
from billing_grpc.errors import SettingsError, StartupError
from billing_grpc.extras import Extra
from billing_grpc.setting_names import VARIABLES, other_settings

_LOOKS_LIKE: Final = 0.85
"""The similarity, of 1, from which a variable's name counts as a misspelt setting."""
_SERVER_MODULES: Final = ("billing_grpc.cli.serve", "billing_grpc.conformance.command")
_GATEWAY_MODULE: Final = "billing_grpc.cli.gateway"
_EPILOG: Final = """\b
Exit codes:
  0  done, or allowed
  1  refused: no such workspace, a stale etag, not permitted, a blocked key, or a failed start
  2  wrong usage, settings or input
  3  unavailable: no answer, or the fallback; try again later
  130  interrupted

The connection's options may also stand after the command. Reference: docs/cli.md."""


# Where each command is defined. Its docstring is its help.
_COMMANDS: Final = {
    "resolve": "billing_grpc.cli.resolve:resolve",
    "list": "billing_grpc.cli.workspaces:list_workspaces",
    "summary": "billing_grpc.cli.summary:summary",
    "get": "billing_grpc.cli.get_set:get",
    "set": "billing_grpc.cli.get_set:set_mode",
    "inherit": "billing_grpc.cli.get_set:inherit",
    "changes": "billing_grpc.cli.changes:changes",
    "validate-secret": "billing_grpc.cli.validate_secret:validate_secret",
    "plan": "billing_grpc.cli.plan:plan",
    "run": "billing_grpc.cli.run:run",
    "watch-health": "billing_grpc.cli.watch_health:watch_health",
    "catalogue": "billing_grpc.cli.catalogue:catalogue",
    "serve": "billing_grpc.cli.serve:serve",
    "gateway": "billing_grpc.cli.gateway:gateway",
    "migrate": "billing_grpc.cli.serve:migrate",
    "grants": "billing_grpc.cli.serve:grants",
    "token": "billing_grpc.cli.token:token",
    "conformance-server": "billing_grpc.conformance.command:conformance_server",
    "completion": "billing_grpc.cli.completion:completion",
}


def _summary(place: str) -> str:
    """Return the first line of a command's docstring from its source: loading the module would load gRPC or a server."""
    module, _, function = place.partition(":")
    package, _, name = module.rpartition(".")
    for node in ast.parse(get_data(package, f"{name}.py") or b"").body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise LookupError(f"{module} defines no function {function}")


class _Lazy(click.Group):
    """A group that loads a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        exit_codes.open_missing_streams()
        quieten_grpc()
        try:
            found: click.Command = resolve_name(place)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("billing_grpc"):
                raise
            raise StartupError(f"`{cmd_name}` {_extra(place).needed}") from error
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # click would first write to standard error, whose reader may be stuck.
            raise click.Abort from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        added = {name: command.get_short_help_str() for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([*((name, _summary(place)) for name, place in _COMMANDS.items()), *added.items()])


def _extra(place: str) -> Extra:
    """Return the extra that a command needs."""
    if place.startswith(_SERVER_MODULES):
        return Extra.SERVER
    return Extra.GATEWAY if place.startswith(_GATEWAY_MODULE) else Extra.CLI


def _warn_about_unknown_settings() -> None:
    """Print a warning for each variable that looks like a setting and is unknown.

    For a server this is an error; here it is not, because `run` starts containers whose environment others may extend.
    """
    # The module that knows the server's settings is slow to load: only if a name is similar to a setting.
    others = other_settings(process_environment())
    if not any(get_close_matches(name.upper(), VARIABLES.values(), 1, _LOOKS_LIKE) for name in others):
        return
    try:
        config = import_module("billing_grpc.server.settings.config")
    except ModuleNotFoundError:
        # Without the extra `server`. A server's setting may stand beside a caller's, so a name can only look misspelt.
        for name in others:
            for nearest in get_close_matches(name.upper(), VARIABLES.values(), 1, _LOOKS_LIKE):
                exit_codes.print_error(f"{name}: no command here reads it; the nearest setting is {nearest}")
        return
    for problem in config.unknown_settings():
        exit_codes.print_error(problem)


@click.group(
    cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, epilog=_EPILOG
)
@click.version_option(__version__, prog_name="billing-grpc")
@click.pass_context
def cli(context: click.Context, /, **given: Any) -> None:
    """Decide who pays for the language-model calls of each workspace of an AI platform."""
    context.obj = Connection(**given)
    place = _COMMANDS.get(context.invoked_subcommand or "")
    if place is not None and not place.startswith((*_SERVER_MODULES, "billing_grpc.cli.token")):
        _warn_about_unknown_settings()


cli.params.extend(connection_options())


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line, and end the process with one of the exit codes of `billing-grpc --help`."""
    exit_codes.honour_sigterm()
    exit_codes.accept_any_text()
    try:
        code = cli.main(arguments, prog_name="billing-grpc", standalone_mode=False, default_map=load_client_settings())
        exit_codes.flush()
    except exit_codes.Failed as error:
        exit_codes.print_error(error.message)
        code = error.code
    except click.ClickException as error:
        exit_codes.print_usage_error(error)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        exit_codes.exit_interrupted()
    except SettingsError as error:
        exit_codes.print_error("wrong settings:", *error.problems)
        code = exit_codes.USAGE
    except StartupError as error:
        exit_codes.print_last_error(str(error))
        code = exit_codes.REFUSED
    sys.exit(code if isinstance(code, int) else exit_codes.OK)
