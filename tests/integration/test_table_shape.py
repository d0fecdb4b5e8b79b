"""Which shapes of `workspaces` a migration takes, which it refuses, and what it then says."""

from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

from billing_grpc.errors import MigrationError
from billing_grpc.storage import migrations
from tests.support.commands import billing_grpc

PARTITIONED: Final = "CREATE TABLE workspaces ({}) PARTITION BY {}; CREATE TABLE first PARTITION OF workspaces DEFAULT"
SUBSCRIBED: Final = """
CREATE TABLE workspaces (id uuid PRIMARY KEY);
CREATE SUBSCRIPTION copied CONNECTION 'dbname=elsewhere' PUBLICATION everything WITH (connect = false, slot_name = NONE);
SET allow_system_table_mods = on;
INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)
SELECT oid, 'workspaces'::regclass, 'r' FROM pg_subscription WHERE subname = 'copied'
"""

FOREIGN: Final = """
CREATE FOREIGN DATA WRAPPER far;
CREATE SERVER far FOREIGN DATA WRAPPER far;
CREATE FOREIGN TABLE workspaces (id uuid) SERVER far
"""

FOREIGN_PARTITION: Final = """
CREATE FOREIGN DATA WRAPPER far;
CREATE SERVER far FOREIGN DATA WRAPPER far;
CREATE TABLE workspaces (id uuid) PARTITION BY HASH (id);
CREATE FOREIGN TABLE first PARTITION OF workspaces FOR VALUES WITH (MODULUS 1, REMAINDER 0) SERVER far
"""

# id: how the workspace server made its table
SAFE: Final = {
    "primary key": "CREATE TABLE workspaces (id uuid PRIMARY KEY)",
    "unique constraint": "CREATE TABLE workspaces (number int PRIMARY KEY, id uuid UNIQUE)",
    "unique index with more in it": (
        "CREATE TABLE workspaces (id uuid, owner text); CREATE UNIQUE INDEX ON workspaces (id) INCLUDE (owner)"
    ),
    "partitioned by id": PARTITIONED.format("id uuid PRIMARY KEY", "RANGE (id)"),
}

# id: how it was made, and a word of the reason
UNSAFE: Final = {
    "no key": ("CREATE TABLE workspaces (id uuid)", "unique index"),
    "composite key": ("CREATE TABLE workspaces (id uuid, region text, PRIMARY KEY (id, region))", "unique index"),
    "unique of some rows": (
        "CREATE TABLE workspaces (id uuid, gone bool); CREATE UNIQUE INDEX ON workspaces (id) WHERE NOT gone",
        "unique index",
    ),
    "unique by an expression": (
        "CREATE TABLE workspaces (id uuid); CREATE UNIQUE INDEX ON workspaces ((id::text))",
        "unique index",
    ),
    "another column unique": ("CREATE TABLE workspaces (id uuid, name text UNIQUE)", "unique index"),
    "an index that is none": ("CREATE TABLE workspaces (id uuid); CREATE INDEX ON workspaces (id)", "unique index"),
    "partitioned by another column": (
        PARTITIONED.format("id uuid, region text, PRIMARY KEY (id, region)", "LIST (region)"),
        "unique index",
    ),
    "inheritance": (
        "CREATE TABLE workspaces (id uuid PRIMARY KEY); CREATE TABLE more () INHERITS (workspaces)",
        "inherit from workspaces",
    ),
    "unlogged": ("CREATE UNLOGGED TABLE workspaces (id uuid PRIMARY KEY)", "unlogged"),
    "an unlogged partition": (
        PARTITIONED.format("id uuid PRIMARY KEY", "RANGE (id)").replace(
            "CREATE TABLE first", "CREATE UNLOGGED TABLE first"
        ),
        "unlogged",
    ),
    "subscriber": (SUBSCRIBED, "subscription"),
}

NO_TABLE: Final = {
    "view": ("CREATE VIEW workspaces AS SELECT gen_random_uuid() AS id", "is a view"),
    "materialized view": ("CREATE MATERIALIZED VIEW workspaces AS SELECT gen_random_uuid() AS id", "materialized view"),
    "foreign table": (FOREIGN, "foreign table"),
    "a foreign partition": (FOREIGN_PARTITION, "foreign table"),
}


@pytest.fixture
def owner(empty_database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        yield connection
        # A subscription keeps its database from being dropped.
        connection.execute("DROP SUBSCRIPTION IF EXISTS copied")


def touched(owner: psycopg.Connection[Any]) -> bool:
    found = owner.execute(
        "SELECT FROM pg_class WHERE relname LIKE '%yoyo%' OR relname LIKE 'workspace\\_billing%'"
        " UNION ALL SELECT FROM pg_attribute WHERE attname = 'llm_billing_mode'"
    )
    return bool(found.fetchall())


@pytest.mark.parametrize("made", SAFE.values(), ids=SAFE)
def test_a_table_with_one_row_for_one_id_is_migrated(
    made: str, owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    owner.execute(made.encode())
    assert migrations.up(empty_database_url) == migrations.names()


@pytest.mark.parametrize(("made", "word"), UNSAFE.values(), ids=UNSAFE)
def test_an_unsafe_table_is_refused_untouched_unless_it_is_allowed(
    made: str, word: str, owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    owner.execute(made.encode())
    with pytest.raises(MigrationError, match=word) as refused:
        migrations.up(empty_database_url)
    assert "--allow-unsafe-table" in str(refused.value)
    doubled = word in {"unique index", "inherit from workspaces"}
    assert ("VALUE_UNREADABLE" if doubled else "DATABASE_STALE") in str(refused.value)
    assert not touched(owner)
    assert migrations.up(empty_database_url, allow_unsafe_table=True) == migrations.names()


@pytest.mark.parametrize(("made", "word"), NO_TABLE.values(), ids=NO_TABLE)
@pytest.mark.parametrize("allowed", [False, True], ids=["refused", "allowed"])
def test_what_is_no_table_is_refused_whatever_is_allowed(
    made: str, word: str, allowed: bool, owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    owner.execute(made.encode())
    with pytest.raises(MigrationError, match=word):
        migrations.up(empty_database_url, allow_unsafe_table=allowed)
    assert not touched(owner)


def test_every_reason_is_said_at_once(owner: psycopg.Connection[Any], empty_database_url: str) -> None:
    owner.execute("CREATE UNLOGGED TABLE workspaces (id uuid)")
    with pytest.raises(MigrationError, match=r"(?s)unlogged.*unique index"):
        migrations.up(empty_database_url)


def test_a_table_that_became_unsafe_is_refused_the_next_time(
    owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    migrations.up(empty_database_url)
    owner.execute("CREATE TABLE more () INHERITS (workspaces)")
    with pytest.raises(MigrationError, match="inherit from workspaces"):
        migrations.up(empty_database_url)


def test_the_command_refuses_says_why_and_takes_the_flag(
    owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    owner.execute("CREATE TABLE workspaces (id uuid)")
    settings = {"DATABASE_URL": empty_database_url}
    refused = billing_grpc("migrate", "up", settings=settings)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--allow-unsafe-table" in refused.stderr
    allowed = billing_grpc("migrate", "up", "--allow-unsafe-table", settings=settings)
    assert (allowed.returncode, allowed.stderr) == (0, "")
