"""The SQL files: the migrations, and the grants for the service's role."""

from pathlib import Path
from typing import Final

from billing_grpc.errors import MigrationError

SERVICE_ROLE: Final = "billing_grpc"
"""The role that the service logs in as, or a role that was granted to its login role."""

_NUMBER_LENGTH: Final = 14


def directory() -> Path:
    """Return the directory of the migrations: in the installed package, or beside the sources in a checkout."""
    packaged = Path(__file__).parents[2] / "_migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "migrations"


def grants() -> bytes:
    """Return the SQL that grants the service's role exactly the rights it needs. The owner of the tables runs it once."""
    return (Path(__file__).parents[1] / "grants.sql").read_bytes()


def names(folder: Path | None = None) -> list[str]:
    """Return the names of all migrations, oldest first.

    Args:
        folder: the folder with the files; None for `directory()`.

    Raises:
        MigrationError: a file has an invalid name, has no rollback file, or has the number of another migration.
    """
    folder = folder or directory()
    files = {path.name for path in folder.glob("*.sql")}
    found = sorted(name.removesuffix(".sql") for name in files if not name.endswith(".rollback.sql"))
    if not found:
        raise MigrationError(f"no migrations in {folder}")
    numbers: dict[str, str] = {}
    for name in found:
        number, _, subject = name.partition("_")
        if not (number.isascii() and number.isdigit() and len(number) == _NUMBER_LENGTH and subject):
            raise MigrationError(f"{name}.sql: a migration's name is its time as YYYYMMDDHHMMSS, _ and its subject")
        if other := numbers.get(number):
            raise MigrationError(f"{name}.sql and {other}.sql share the number {number}: give the later one a new one")
        numbers[number] = name
    expected = {f"{name}{ending}" for name in found for ending in (".sql", ".rollback.sql")}
    if expected != files:
        raise MigrationError(f"each migration needs both files; look at {', '.join(sorted(expected ^ files))}")
    return found
