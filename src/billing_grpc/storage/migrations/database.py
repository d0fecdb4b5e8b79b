"""Connect to the database that is migrated, and translate the driver's errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from billing_grpc.errors import MigrationError, SettingsError
from billing_grpc.storage.postgres import parse_address

_CONNECT_TIMEOUT: Final = 10


def run_script(database_url: str, sql: bytes) -> None:
    """Run a constant SQL script in one transaction.

    Raises:
        MigrationError: the database cannot be reached or refuses.
    """
    with migration_errors(), connected(database_url) as connection, connection.transaction():
        connection.execute(sql)


@contextmanager
def connected(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection in autocommit mode, and close it."""
    address = address_for_text(database_url)
    with psycopg.connect(address, autocommit=True, connect_timeout=_CONNECT_TIMEOUT) as connection:
        yield connection


def address_for_text(database_url: str) -> str:
    """Return the address with UTF-8 as client encoding; without it, psycopg returns bytes from a SQL_ASCII database.

    Raises:
        SettingsError: libpq would not accept the address.
    """
    try:
        parts = parse_address(database_url)
    except SettingsError as error:
        raise SettingsError([f"DATABASE_URL: {problem}" for problem in error.problems]) from None
    return make_conninfo(**{**parts, "client_encoding": "utf8"})


@contextmanager
def migration_errors() -> Iterator[None]:
    """Raise `MigrationError` for an error of the driver."""
    try:
        yield
    except psycopg.Error as error:
        # The operator at a terminal needs the driver's text. It is never sent to a client.
        raise MigrationError(f"the database said: {str(error).strip() or type(error).__name__}") from error
