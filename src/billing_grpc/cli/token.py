"""`billing-grpc token`: make the tokens that callers send."""

import secrets
from typing import Final

import click

from billing_grpc.cli import output
from billing_grpc.errors import SettingsError
from billing_grpc.model import Role
from billing_grpc.server.auth.principals import NAME_RULE, is_name, token_digest

_PREFIX: Final = "bgrpc_"
"""The prefix of every token, by which scanners for leaked secrets recognise one."""


@click.group()
def token() -> None:
    """Make the tokens that callers send."""


@token.command("new")
@click.option("--name", required=True, help="The caller's name, for logs and the change log.")
@click.option(
    "--role",
    required=True,
    type=click.Choice([role.value for role in Role]),
    help="The role, which decides what the caller may do.",
)
@output.json_option
def token_new(*, name: str, role: str, as_json: bool) -> None:
    """Print a new token, once, and what to add to the tokens file. Nothing is stored."""
    # A quote in the name would let it add TOML of its own.
    if not is_name(name):
        raise SettingsError([f"--name must be {NAME_RULE}"])
    fresh = _PREFIX + secrets.token_urlsafe(32)
    digest = token_digest(fresh)
    entry = f'[[principal]]\nname = "{name}"\nrole = "{role}"\ntoken_sha256 = ["{digest}"]'
    if as_json:
        output.json_line({"token": fresh, "name": name, "role": role, "token_sha256": digest, "entry": f"{entry}\n"})
        return
    click.echo(f"The token, which is printed only now:\n\n{fresh}\n")
    click.echo(
        f"Add this to the tokens file (BILLING_GRPC_TOKENS_FILE); a running server reads it without a restart:\n\n{entry}\n"
    )
    click.echo(
        f"Where {name} is in the file already, add the digest to its token_sha256, and remove the old digest later."
    )
