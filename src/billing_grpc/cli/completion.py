"""`billing-grpc completion`: print the script with which a shell completes commands and options."""

from typing import Final

import click
from click.shell_completion import get_completion_class

from billing_grpc.cli import exit_codes

_PROGRAM: Final = "billing-grpc"
_EPILOG: Final = """\b
Examples:
  eval "$(billing-grpc completion bash)"                     # for this shell; also in ~/.bashrc or ~/.zshrc
  billing-grpc completion fish > ~/.config/fish/completions/billing-grpc.fish"""


@click.command("completion", epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, *, shell: str) -> int:
    """Print a shell's completion script."""
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"there is no completion for {shell}")
    exit_codes.write(found(context.find_root().command, {}, _PROGRAM, "_BILLING_GRPC_COMPLETE").source())
    return exit_codes.OK
