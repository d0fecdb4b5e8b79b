"""Apply, roll back and list the migrations, one process at a time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import yoyo
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from billing_grpc.errors import MigrationError
from billing_grpc.storage.migrations.checks import attach_triggers, require_rights, require_safe_table
from billing_grpc.storage.migrations.database import address_for_text, connected, migration_errors
from billing_grpc.storage.migrations.files import directory, names

_LOCK_KEY: Final = 0x62_69_6C_6C_69_6E_67  # "billing"
_LOCK_WAIT: Final = 60.0
_LOCK_POLL: Final = 0.1
_LOCK_ATTEMPTS: Final = 30
_LOCK_PAUSE: Final = 1.0
_LEDGER: Final = "_yoyo_migration"


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
        with migration_errors(), connected(database_url) as connection:
            require_safe_table(connection, allow_unsafe=allow_unsafe_table)
        with _exclusively(database_url) as backend:
            for migration in backend.to_apply(yoyo.read_migrations(str(directory()))):
                backend.apply_one(migration)
                applied.append(migration.id)
            with connected(database_url) as connection:
                applied.extend(f"triggers of {table}" for table in attach_triggers(connection))

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
    with migration_errors(), connected(database_url) as connection:
        # Only in the schema that yoyo uses: a table of this name in another schema of the search path is not the ledger.
        find = "SELECT to_regclass(quote_ident(current_schema()) || '.' || %s)"
        ledger = connection.execute(find, [_LEDGER]).fetchone()
        every = sql.SQL("SELECT migration_id FROM {} ORDER BY migration_id").format(sql.Identifier(_LEDGER))
        rows = connection.execute(every).fetchall() if ledger and ledger[0] else []
    applied = {str(row[0]) for row in rows}
    known = names()
    listed = [MigrationStatus(name, name in applied) for name in known]
    return listed + [MigrationStatus(name, applied=True, known=False) for name in sorted(applied - set(known))]


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
    with migration_errors(), connected(database_url) as lock:
        _take_lock(lock)
        require_rights(lock, _LEDGER)
        given = conninfo_to_dict(address_for_text(database_url))
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
