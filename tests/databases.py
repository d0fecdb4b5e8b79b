"""Databases of their own for tests, beside the one of a running server."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from billing_grpc.storage import migrations

EMPTY: Final = "TEMPLATE template0"
SQL_ASCII: Final = f"{EMPTY} ENCODING 'SQL_ASCII' LOCALE 'C'"
"""It stores whatever bytes it is given."""
LATIN1: Final = f"{EMPTY} ENCODING 'LATIN1' LOCALE 'C'"


@contextmanager
def new_database(beside: str, made_how: LiteralString = EMPTY) -> Iterator[str]:
    """A database of its own, dropped at the end."""
    name = f"t_{uuid.uuid4().hex}"
    with psycopg.connect(beside, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} " + made_how).format(sql.Identifier(name)))
        try:
            yield make_conninfo(beside, dbname=name)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def unchecked_database(beside: str, made_how: LiteralString = EMPTY) -> Iterator[str]:
    """A migrated database with the service's role, whose table takes any text."""
    with new_database(beside, made_how) as url:
        migrations.up(url)
        migrations.run_script(url, migrations.grants())
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute("ALTER TABLE workspaces DROP CONSTRAINT workspaces_llm_billing_mode_check")
        yield url
