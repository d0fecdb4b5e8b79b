"""The change log of a partitioned or inherited table: TRUNCATE, rows that move, and tables that come and go."""

import uuid
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg import errors

from billing_grpc.storage import migrations
from tests.support.commands import billing_grpc

TABLES: Final = """
CREATE TABLE workspaces (id uuid, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE workspaces_eu PARTITION OF workspaces FOR VALUES IN ('eu');
CREATE TABLE workspaces_us PARTITION OF workspaces FOR VALUES IN ('us') PARTITION BY HASH (id);
CREATE TABLE workspaces_us_0 PARTITION OF workspaces_us FOR VALUES WITH (MODULUS 1, REMAINDER 0);
"""
LATER: Final = "CREATE TABLE workspaces_asia PARTITION OF workspaces FOR VALUES IN ('asia')"

Entries = list[tuple[str | None, str | None]]


@pytest.fixture
def owner(empty_database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The owner of a migrated table with partitions, one of them with a partition of its own."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(TABLES.encode())
        migrations.up(empty_database_url, allow_unsafe_table=True)
        yield connection


def add(owner: psycopg.Connection[Any], region: str, mode: str | None, workspace: str | None = None) -> str:
    made = workspace or str(uuid.uuid4())
    owner.execute("INSERT INTO workspaces (id, region, llm_billing_mode) VALUES (%s, %s, %s)", [made, region, mode])
    return made


def entries(owner: psycopg.Connection[Any], workspace: str) -> Entries:
    """From and to, oldest first."""
    found = owner.execute(
        "SELECT previous_override, new_override FROM workspace_billing_mode_changes"
        " WHERE workspace_id = %s ORDER BY change_id",
        [workspace],
    )
    return [(row[0], row[1]) for row in found]


# Emptied


@pytest.mark.parametrize(
    ("table", "emptied"),
    {
        "workspaces": {"eu", "us"},
        "workspaces_eu": {"eu"},
        "workspaces_us": {"us"},
        "workspaces_us_0": {"us"},
    }.items(),
)
def test_emptying_a_table_is_recorded_once_for_each_of_its_workspaces(
    table: str, emptied: set[str], owner: psycopg.Connection[Any]
) -> None:
    workspaces = {region: add(owner, region, "byok") for region in ("eu", "us")}
    add(owner, "eu", None)
    owner.execute(f"TRUNCATE {table}".encode())
    for region, workspace in workspaces.items():
        ended = [("byok", None)] if region in emptied else []
        assert entries(owner, workspace) == [(None, "byok"), *ended]


def test_emptying_all_is_recorded_for_a_partition_without_a_trigger_of_its_own(
    owner: psycopg.Connection[Any],
) -> None:
    owner.execute(LATER)
    workspaces = [add(owner, region, "byok") for region in ("asia", "eu")]
    owner.execute("TRUNCATE workspaces")
    assert [entries(owner, each) for each in workspaces] == [[(None, "byok"), ("byok", None)]] * 2


def test_migrating_again_gives_a_later_partition_its_trigger_and_says_so(
    owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    owner.execute(LATER)
    command = ("migrate", "--database-url", empty_database_url, "up", "--allow-unsafe-table")
    assert billing_grpc(*command).stdout == "applied triggers of workspaces_asia\n"
    assert billing_grpc(*command).stdout == "nothing to apply\n"
    workspace = add(owner, "asia", "byok")
    owner.execute("TRUNCATE workspaces_asia")
    assert entries(owner, workspace) == [(None, "byok"), ("byok", None)]


def test_what_is_emptied_after_it_was_detached_is_no_change(owner: psycopg.Connection[Any]) -> None:
    workspace = add(owner, "eu", "byok")
    owner.execute("ALTER TABLE workspaces DETACH PARTITION workspaces_eu")
    owner.execute("TRUNCATE workspaces_eu")
    assert entries(owner, workspace) == [(None, "byok")]


def test_rolling_back_leaves_no_trigger_of_a_single_partition_and_goes_up_again(
    owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    names = [name for _ in range(3) for name in migrations.down(empty_database_url)][::-1]
    workspace = add(owner, "eu", "byok")
    owner.execute("TRUNCATE workspaces")
    assert entries(owner, workspace) == [(None, "byok"), ("byok", None)]
    assert migrations.up(empty_database_url, allow_unsafe_table=True) == names
    assert migrations.down(empty_database_url, every=True) == migrations.names()[::-1]


# Moved


@pytest.mark.parametrize("mode", ["byok", None])
def test_a_row_that_moves_between_partitions_is_no_change_of_mode(
    mode: str | None, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "eu", mode)
    before = entries(owner, workspace)
    for region in ("us", "eu", "us"):
        owner.execute("UPDATE workspaces SET region = %s WHERE id = %s", [region, workspace])
    assert entries(owner, workspace) == before


@pytest.mark.parametrize(("before", "after"), [("byok", "disabled"), ("byok", None), (None, "byok")])
def test_a_row_that_moves_and_changes_its_mode_leaves_one_entry(
    before: str | None, after: str | None, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "eu", before)
    known = entries(owner, workspace)
    owner.execute("UPDATE workspaces SET region = 'us', llm_billing_mode = %s WHERE id = %s", [after, workspace])
    assert entries(owner, workspace) == [*known, (before, after)]


def test_a_row_that_moves_and_gets_another_id_ends_one_chain_and_begins_another(
    owner: psycopg.Connection[Any],
) -> None:
    workspace, other = add(owner, "eu", "byok"), str(uuid.uuid4())
    owner.execute("UPDATE workspaces SET region = 'us', id = %s WHERE id = %s", [other, workspace])
    assert (entries(owner, workspace), entries(owner, other)) == (
        [(None, "byok"), ("byok", None)],
        [(None, "byok")],
    )


def test_a_row_that_is_deleted_and_comes_again_is_two_changes(owner: psycopg.Connection[Any]) -> None:
    workspace = add(owner, "eu", "byok")
    owner.execute("DELETE FROM workspaces WHERE id = %s", [workspace])
    add(owner, "us", "byok", workspace)
    assert entries(owner, workspace) == [(None, "byok"), ("byok", None), (None, "byok")]


def test_a_second_row_for_one_id_is_recorded(owner: psycopg.Connection[Any]) -> None:
    workspace = add(owner, "eu", "byok")
    add(owner, "us", "byok", workspace)
    assert entries(owner, workspace) == [(None, "byok"), (None, "byok")]


# Inherited


def test_a_table_that_inherits_is_recorded_after_a_migration_and_while_it_inherits(
    owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    owner.execute("DROP TABLE workspaces; CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode text)")
    owner.execute("CREATE TABLE more () INHERITS (workspaces)")
    applied = migrations.up(empty_database_url, allow_unsafe_table=True)
    assert set(applied) == {"triggers of workspaces", "triggers of more"}
    workspace = str(uuid.uuid4())
    owner.execute("INSERT INTO more VALUES (%s, 'byok')", [workspace])
    owner.execute("UPDATE workspaces SET llm_billing_mode = 'disabled' WHERE id = %s", [workspace])
    owner.execute("TRUNCATE ONLY workspaces")
    assert entries(owner, workspace) == [(None, "byok"), ("byok", "disabled")]
    owner.execute("ALTER TABLE more NO INHERIT workspaces")
    owner.execute("UPDATE more SET llm_billing_mode = 'byok'")
    owner.execute("TRUNCATE more")
    assert entries(owner, workspace) == [(None, "byok"), ("byok", "disabled")]


# What no trigger can see, and what it refuses


def test_a_bulk_load_that_switches_triggers_off_leaves_no_entry(owner: psycopg.Connection[Any]) -> None:
    owner.execute("SET session_replication_role = replica")
    assert entries(owner, add(owner, "eu", "byok")) == []


@pytest.mark.parametrize(
    ("column", "change"),
    {
        "id": "UPDATE workspaces SET llm_billing_mode = 'disabled'",
        "llm_billing_mode": "UPDATE workspaces SET renamed = 'disabled'",
    }.items(),
)
def test_under_a_renamed_column_a_change_is_refused_by_its_name(
    column: str, change: str, owner: psycopg.Connection[Any]
) -> None:
    add(owner, "eu", "byok")
    owner.execute(f"ALTER TABLE workspaces RENAME {column} TO renamed".encode())
    with pytest.raises(errors.UndefinedColumn, match=f'"{column}"'):
        owner.execute(change.encode())


def test_under_a_renamed_table_changes_are_still_recorded(owner: psycopg.Connection[Any]) -> None:
    workspace = add(owner, "eu", "byok")
    owner.execute("ALTER TABLE workspaces RENAME TO renamed")
    owner.execute("UPDATE renamed SET llm_billing_mode = 'disabled'")
    owner.execute("UPDATE renamed SET region = 'us', llm_billing_mode = 'byok'")
    assert entries(owner, workspace)[:2] == [(None, "byok"), ("byok", "disabled")]
