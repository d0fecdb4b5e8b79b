"""The commands for operators of the server: `serve`, `migrate` and `grants`."""

from typing import Final

import click
from pydantic.fields import FieldInfo

from billing_grpc.cli import exit_codes
from billing_grpc.cli.gateway_process import gateway_beside
from billing_grpc.server.run import run
from billing_grpc.server.settings.config import Settings, load_database_url, load_settings
from billing_grpc.server.settings.limits import Limits
from billing_grpc.stalled_reader import announcing
from billing_grpc.storage import migrations

_STDOUT: Final = 1


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


@click.command()
def grants() -> None:
    """Print the SQL that gives the service's role its rights.

    The owner of the tables runs it once, after `migrate up`.
    """
    exit_codes.write(migrations.grants().decode())


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
@click.option(
    "--page",
    metavar="HOST:PORT",
    help="Also start a gateway there, whose page shows and changes the modes. For a laptop.",
)
def serve(page: str | None, **flags: str | None) -> None:
    """Serve until SIGINT or SIGTERM."""
    by_setting = {_setting(field): flags[name] for name, field in Settings.model_fields.items()}
    settings = load_settings(by_setting)
    with announcing(_STDOUT) as say, gateway_beside(page, local_admin=settings.local_admin) as started:
        run(settings, say, started)
