"""Apply, roll back and list the migrations of the schema: raw SQL files, run by yoyo under an advisory lock."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import yoyo
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from billing_grpc.errors import MigrationError, SettingsError
from billing_grpc.storage.postgres import parse_address
from billing_grpc.storage.table_shape import LOOK, reasons_against

_LOCK_KEY: Final = 0x62_69_6C_6C_69_6E_67  # "billing"
_LOCK_WAIT: Final = 60.0
_LOCK_POLL: Final = 0.1
_LOCK_ATTEMPTS: Final = 30
_LOCK_PAUSE: Final = 1.0
_CONNECT_TIMEOUT: Final = 10
SERVICE_ROLE: Final = "billing_grpc"
"""The role that the service logs in as, or a role that was granted to its login role."""

_LEDGER: Final = "_yoyo_migration"
_NUMBER_LENGTH: Final = 14


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One migration and its state.

    Attributes:
        name: its number and its subject.
        applied: whether it is applied to the database.
        known: whether this version of the package has it; False if a newer version applied it.
    """

    name: str
    applied: bool
    known: bool = True


def directory() -> Path:
    """Return the directory of the SQL files: in the installed package, or beside the sources in a checkout."""
    packaged = Path(__file__).parents[1] / "_migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "migrations"


def grants() -> bytes:
    """Return the SQL that grants the service's role exactly the rights it needs. The owner of the tables runs it once."""
    return Path(__file__).with_name("grants.sql").read_bytes()


def names(folder: Path | None = None) -> list[str]:
    """Return the names of all migrations, oldest first.

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


def up(database_url: str, *, allow_unsafe_table: bool = False) -> list[str]:
    """Apply the missing migrations, oldest first, each in its own transaction; return their names.

    Also add the change log's triggers to partitions that were attached since the last run. The result names each of them as
    `triggers of TABLE`. Several processes may run this at once: one migrates, and the others wait and find nothing to do.

    Args:
        database_url: the database, with the owner of the tables as the user.
        allow_unsafe_table: also migrate a table with an unsafe shape (`table_shape`).

    Raises:
        MigrationError: the database cannot be reached or refuses, another migration holds the lock for a minute, or the
            shape of `workspaces` is unsafe.
    """
    names()
    applied: list[str] = []

    def run() -> None:
        with _migration_errors(), _connected(database_url) as connection:
            _require_safe_table(connection, allow_unsafe=allow_unsafe_table)
        with _exclusively(database_url) as backend:
            for migration in backend.to_apply(yoyo.read_migrations(str(directory()))):
                backend.apply_one(migration)
                applied.append(migration.id)
            applied.extend(f"triggers of {table}" for table in _attach_triggers(database_url))

    _with_lock_retries(run)
    return applied


def down(database_url: str, *, every: bool = False) -> list[str]:
    """Roll back the newest applied migration, or all of them, newest first; return their names.

    Raises:
        MigrationError: as for `up`.
    """
    names()
    rolled_back: list[str] = []

    def run() -> None:
        with _exclusively(database_url) as backend:
            for migration in backend.to_rollback(yoyo.read_migrations(str(directory()))):
                if every or not rolled_back:
                    backend.rollback_one(migration)
                    rolled_back.append(migration.id)

    _with_lock_retries(run)
    return rolled_back


def status(database_url: str) -> list[MigrationStatus]:
    """Return every migration and whether it is applied, oldest first. Write nothing.

    Raises:
        MigrationError: the database cannot be reached or refuses.
    """
    with _migration_errors(), _connected(database_url) as connection:
        # Only in the schema that yoyo uses: a table of this name in another schema of the search path is not the ledger.
        find = "SELECT to_regclass(quote_ident(current_schema()) || '.' || %s)"
        ledger = connection.execute(find, [_LEDGER]).fetchone()
        rows = (
            connection.execute(f"SELECT migration_id FROM {_LEDGER} ORDER BY migration_id").fetchall()  # noqa: S608 - a constant
            if ledger and ledger[0]
            else []
        )
    applied = {str(row[0]) for row in rows}
    known = names()
    listed = [MigrationStatus(name, name in applied) for name in known]
    return listed + [MigrationStatus(name, applied=True, known=False) for name in sorted(applied - set(known))]


def run_script(database_url: str, sql: bytes) -> None:
    """Run a constant SQL script in one transaction.

    Raises:
        MigrationError: the database cannot be reached or refuses.
    """
    with _migration_errors(), _connected(database_url) as connection, connection.transaction():
        connection.execute(sql)


def _with_lock_retries(run: Callable[[], None]) -> None:
    """Call `run`, and repeat it while it cannot lock the table.

    A migration waits only half a second for its lock, because all other reads and writes of the table wait behind it.
    """
    for left in reversed(range(_LOCK_ATTEMPTS)):
        try:
            run()
        except MigrationError as error:
            if not left or not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise
            time.sleep(_LOCK_PAUSE)
        else:
            return


@contextmanager
def _exclusively(database_url: str) -> Iterator[Any]:
    """Yield yoyo's backend under the advisory lock, so that only one process migrates this database."""
    with _migration_errors(), _connected(database_url) as lock:
        _take_lock(lock)
        _require_rights(lock)
        given = conninfo_to_dict(_as_text(database_url))
        parameters = {key: str(value) for key, value in given.items() if value is not None}
        name = parameters.pop("dbname", "")
        uri = DatabaseURI("postgresql+psycopg", None, None, None, None, name, parameters)
        with PostgresqlPsycopgBackend(uri, _LEDGER) as backend:
            backend.init_database()
            # We hold the advisory lock, which ends with its session. So a row in yoyo's lock table is from a killed process.
            backend.break_lock()
            with backend.lock():
                yield backend


def _take_lock(connection: psycopg.Connection[Any]) -> None:
    # Polled, because CREATE INDEX CONCURRENTLY waits for the snapshot of a session that waits in pg_advisory_lock.
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK_KEY]).fetchone()
        if row and row[0]:
            return
        if time.monotonic() > deadline:
            raise MigrationError("another migration of this database is still running; try again when it has ended")
        time.sleep(_LOCK_POLL)


def _require_rights(connection: psycopg.Connection[Any]) -> None:
    """Raise if the role lacks a right: the tables it made before it failed would belong to it, and block the right role."""
    row = connection.execute(
        "SELECT current_user::text, coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
    ).fetchone()
    role, may_create = row or ("", False)
    if not may_create:
        raise MigrationError(
            f"the role {role} may not create tables in this schema; migrate as the owner of the database"
        )
    owned_by_others = connection.execute(
        "SELECT relname::text, pg_get_userbyid(relowner)::text FROM pg_class"
        " WHERE oid = ANY(ARRAY[to_regclass('workspaces'), to_regclass('yoyo_lock'), to_regclass(%s)]::oid[])"
        " AND NOT pg_has_role(relowner, 'USAGE')",
        [_LEDGER],
    ).fetchone()
    if owned_by_others:
        table, owner = owned_by_others
        raise MigrationError(f"the table {table} belongs to {owner}: migrate as {owner}, or as a member of it")


def _require_safe_table(connection: psycopg.Connection[Any], *, allow_unsafe: bool) -> None:
    """Raise if the shape of the table is unsafe (`table_shape`)."""
    reasons = reasons_against((row[0] for row in connection.execute(LOOK)), allow_unsafe=allow_unsafe)
    if reasons:
        offer = "" if allow_unsafe else "; --allow-unsafe-table migrates all the same where the table can take it"
        raise MigrationError("; ".join(reasons) + offer)


def _attach_triggers(database_url: str) -> list[str]:
    """Add the change log's triggers to new partitions; return the names of their tables."""
    with _connected(database_url) as connection:
        row = connection.execute("SELECT to_regproc('attach_workspace_billing_mode_triggers') IS NOT NULL").fetchone()
        if row is None or not row[0]:
            return []
        attached = connection.execute(
            "SELECT DISTINCT table_name::text FROM attach_workspace_billing_mode_triggers() AS table_name"
        )
        return [str(each[0]) for each in attached]


def _as_text(database_url: str) -> str:
    """Return the address with UTF-8 as client encoding; without it, psycopg returns bytes from a SQL_ASCII database."""
    try:
        parts = parse_address(database_url)
    except SettingsError as error:
        raise SettingsError([f"DATABASE_URL: {problem}" for problem in error.problems]) from None
    return make_conninfo(**{**parts, "client_encoding": "utf8"})


@contextmanager
def _connected(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(_as_text(database_url), autocommit=True, connect_timeout=_CONNECT_TIMEOUT) as connection:
        yield connection


@contextmanager
def _migration_errors() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        # The operator at a terminal needs the driver's text. It is never sent to a client.
        raise MigrationError(f"the database said: {str(error).strip() or type(error).__name__}") from error
