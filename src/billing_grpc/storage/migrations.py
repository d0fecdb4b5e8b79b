"""Applies, rolls back and lists the schema's migrations: raw SQL files, run by yoyo under an advisory lock of ours."""

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
"""The role that the service logs in as, or that its login role was granted."""

_LEDGER: Final = "_yoyo_migration"
_NUMBER_LENGTH: Final = 14


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One migration and where it stands.

    Attributes:
        name: its number and what it is about.
        applied: whether the database has it.
        known: whether this version ships it; False for one that a newer version applied.
    """

    name: str
    applied: bool
    known: bool = True


def directory() -> Path:
    """Where the SQL files are: inside the installed package, or beside the sources in a checkout."""
    packaged = Path(__file__).parents[1] / "_migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "migrations"


def grants() -> bytes:
    """The SQL that gives the service's role what it needs and nothing else; to be run by the tables' owner, once."""
    return Path(__file__).with_name("grants.sql").read_bytes()


def names(folder: Path | None = None) -> list[str]:
    """The names of all migrations, oldest first.

    Raises:
        MigrationError: a file is named wrongly, lacks its rollback, or shares its number with another.
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
    """Applies what is missing, oldest first, each in a transaction of its own; answers the names applied.

    Partitions that were attached since get the change log's triggers, and stand in the answer as `triggers of TABLE`.
    Several processes may start at once: one works, the others wait and find nothing left to do.

    Args:
        database_url: the Postgres, for the owner of the tables.
        allow_unsafe_table: migrate also where an id may have two rows, or rows may be lost or late (`table_shape`).

    Raises:
        MigrationError: the database cannot be reached, refuses, another migration holds the lock for a minute, or
            `workspaces` has a shape in which decisions would not be right.
    """
    names()
    applied: list[str] = []

    def run() -> None:
        with _errors_named(), _connected(database_url) as connection:
            _require_safe_table(connection, allow_unsafe=allow_unsafe_table)
        with _exclusively(database_url) as backend:
            for migration in backend.to_apply(yoyo.read_migrations(str(directory()))):
                backend.apply_one(migration)
                applied.append(migration.id)
            applied.extend(f"triggers of {table}" for table in _attach_triggers(database_url))

    _patiently(run)
    return applied


def down(database_url: str, *, every: bool = False) -> list[str]:
    """Rolls back the newest applied migration, or every one, newest first; answers the names rolled back.

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

    _patiently(run)
    return rolled_back


def status(database_url: str) -> list[MigrationStatus]:
    """Every migration and whether it is applied, oldest first; writes nothing.

    Raises:
        MigrationError: the database cannot be reached or refuses.
    """
    with _errors_named(), _connected(database_url) as connection:
        # Where yoyo keeps it, and not one that merely stands further down the search path.
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
    """Runs a constant SQL script in one transaction.

    Raises:
        MigrationError: the database cannot be reached or refuses.
    """
    with _errors_named(), _connected(database_url) as connection, connection.transaction():
        connection.execute(sql)


def _patiently(run: Callable[[], None]) -> None:
    """Tries again while somebody uses the table.

    Each migration waits only half a second for its lock: everybody else's reads and writes wait behind it.
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
    """Yoyo's backend, while no other process of ours migrates this database."""
    with _errors_named(), _connected(database_url) as lock:
        _take_lock(lock)
        _require_rights(lock)
        given = conninfo_to_dict(_as_text(database_url))
        parameters = {key: str(value) for key, value in given.items() if value is not None}
        name = parameters.pop("dbname", "")
        uri = DatabaseURI("postgresql+psycopg", None, None, None, None, name, parameters)
        with PostgresqlPsycopgBackend(uri, _LEDGER) as backend:
            backend.init_database()
            # Whoever left yoyo's lock row behind was killed: we hold the advisory lock, which dies with its owner.
            backend.break_lock()
            with backend.lock():
                yield backend


def _take_lock(connection: psycopg.Connection[Any]) -> None:
    # Polled: a session that waits inside pg_advisory_lock holds a snapshot, which CREATE INDEX CONCURRENTLY waits for.
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK_KEY]).fetchone()
        if row and row[0]:
            return
        if time.monotonic() > deadline:
            raise MigrationError("another migration of this database is still running; try again when it has ended")
        time.sleep(_LOCK_POLL)


def _require_rights(connection: psycopg.Connection[Any]) -> None:
    """Refuses a role that could not finish: what it began would be its own, and lock the right one out."""
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
    """Refuses a table of which an id may have two rows, or whose rows may be lost or late."""
    reasons = reasons_against((row[0] for row in connection.execute(LOOK)), allow_unsafe=allow_unsafe)
    if reasons:
        offer = "" if allow_unsafe else "; --allow-unsafe-table migrates all the same where the table can take it"
        raise MigrationError("; ".join(reasons) + offer)


def _attach_triggers(database_url: str) -> list[str]:
    """Lets the database give the log's triggers to partitions that were attached since; answers their tables."""
    with _connected(database_url) as connection:
        row = connection.execute("SELECT to_regproc('attach_workspace_billing_mode_triggers') IS NOT NULL").fetchone()
        if row is None or not row[0]:
            return []
        attached = connection.execute(
            "SELECT DISTINCT table_name::text FROM attach_workspace_billing_mode_triggers() AS table_name"
        )
        return [str(each[0]) for each in attached]


def _as_text(database_url: str) -> str:
    """The address, with text coming as text also from a database whose encoding is SQL_ASCII."""
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
def _errors_named() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        # For the operator at a terminal, who needs the driver's words; never sent to a client.
        raise MigrationError(f"the database said: {str(error).strip() or type(error).__name__}") from error
