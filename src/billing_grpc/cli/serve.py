"""The commands for operators of the server: `serve`, `migrate` and `token`."""

import secrets
from typing import Final

import click
from pydantic.fields import FieldInfo

from billing_grpc.errors import SettingsError
from billing_grpc.model import Role
from billing_grpc.server.auth.principals import NAME_RULE, is_name, token_digest
from billing_grpc.server.run import run
from billing_grpc.server.settings.config import Settings, load_database_url, load_settings
from billing_grpc.server.settings.limits import Limits
from billing_grpc.standing_reader import announcing
from billing_grpc.storage import migrations

_STDOUT: Final = 1
_PREFIX: Final = "bgrpc_"
"""The prefix of every token, by which scanners for leaked secrets recognise one."""


@click.group()
@click.option("--database-url", help="The URL of the Postgres database to migrate (setting: DATABASE_URL).")
@click.pass_context
def migrate(context: click.Context, database_url: str | None) -> None:
    """Change the database's schema, or list its migrations."""
    context.obj = load_database_url(database_url)


@migrate.command("up")
@click.option(
    "--allow-unsafe-table",
    is_flag=True,
    help="Migrate even if an id of `workspaces` may have two rows (its decisions are then platform_managed), or if rows may"
    " be lost or late, because the table is unlogged or filled by a logical subscription.",
)
@click.pass_obj
def migrate_up(database_url: str, *, allow_unsafe_table: bool) -> None:
    """Apply every migration that is missing."""
    applied = migrations.up(database_url, allow_unsafe_table=allow_unsafe_table)
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to apply")


@migrate.command("down")
@click.option("--all", "every", is_flag=True, help="Roll back all migrations, newest first.")
@click.pass_obj
def migrate_down(database_url: str, *, every: bool) -> None:
    """Roll back the newest applied migration. The data in what it added is lost."""
    rolled_back = migrations.down(database_url, every=every)
    for name in rolled_back:
        click.echo(f"rolled back {name}")
    if not rolled_back:
        click.echo("nothing to roll back")


@migrate.command("status")
@click.pass_obj
def migrate_status(database_url: str) -> None:
    """List every migration and whether it is applied. Writes nothing."""
    for each in migrations.status(database_url):
        note = "" if each.known else "  (unknown to this version)"
        click.echo(f"{'applied' if each.applied else 'pending'}  {each.name}{note}")


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
def token_new(name: str, role: str) -> None:
    """Print a new token, once, and what to add to the tokens file. Nothing is stored."""
    # A quote in the name would let it add TOML of its own.
    if not is_name(name):
        raise SettingsError([f"--name must be {NAME_RULE}"])
    fresh = _PREFIX + secrets.token_urlsafe(32)
    entry = f'[[principal]]\nname = "{name}"\nrole = "{role}"\ntoken_sha256 = ["{token_digest(fresh)}"]'
    click.echo(f"The token, which is printed only now:\n\n{fresh}\n")
    click.echo(
        f"Add this to the tokens file (BILLING_GRPC_TOKENS_FILE); a running server reads it without a restart:\n\n{entry}\n"
    )
    click.echo(
        f"Where {name} is in the file already, add the digest to its token_sha256, and remove the old digest later."
    )


def _setting(field: FieldInfo) -> str:
    return str(field.alias)


def _flags() -> list[click.Parameter]:
    """Return one flag for each setting, so that flags and settings cannot differ."""
    return [
        click.Option(
            [f"--{_setting(field).removeprefix('BILLING_GRPC_').lower().replace('_', '-')}", name],
            help=f"{field.description} (setting: {_setting(field)})",
            metavar="VALUE",
        )
        # The limits last, because they are rarely needed.
        for name, field in sorted(Settings.model_fields.items(), key=lambda item: item[0] in Limits.model_fields)
    ]


@click.command(params=_flags())
def serve(**flags: str | None) -> None:
    """Serve until SIGINT or SIGTERM."""
    by_setting = {_setting(field): flags[name] for name, field in Settings.model_fields.items()}
    settings = load_settings(by_setting)
    with announcing(_STDOUT) as say:
        run(settings, say)
