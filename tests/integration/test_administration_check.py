"""Whether administration works, asked of databases that lack something; and who is told when that changes."""

import asyncio
from functools import partial
from typing import Final

import psycopg
import pytest
from structlog.testing import capture_logs

from billing_grpc.errors import DatabaseDenied, DatabaseStale, SchemaNotReady, StorageError
from billing_grpc.server.health import CHECK_INTERVAL, watch_administration
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.testing import InMemoryRepository
from tests.support.polling import until_true

BUDGET: Final = 5.0
until: Final = partial(until_true, seconds=5)

OLD_NUMBERS: Final = """
ALTER TABLE workspace_billing_mode_changes
    ALTER change_id DROP DEFAULT, ALTER change_id ADD GENERATED ALWAYS AS IDENTITY
"""

# id: what the owner of the database did, and what the service is told
LACKS: Final[dict[str, tuple[str, type[StorageError]]]] = {
    "the column": ("ALTER TABLE workspaces DROP COLUMN llm_billing_mode CASCADE", SchemaNotReady),
    "the log": ("DROP TABLE workspace_billing_mode_changes", SchemaNotReady),
    "a column of the log": ("ALTER TABLE workspace_billing_mode_changes DROP COLUMN request_id", SchemaNotReady),
    "the trigger": ("DROP TRIGGER workspace_billing_mode_updated ON workspaces", SchemaNotReady),
    "a trigger that fires": (
        "ALTER TABLE workspaces DISABLE TRIGGER workspace_billing_mode_updated",
        SchemaNotReady,
    ),
    "a trigger that fires for its own session": (
        "ALTER TABLE workspaces ENABLE REPLICA TRIGGER workspace_billing_mode_updated",
        SchemaNotReady,
    ),
    "the trigger of a new workspace": ("DROP TRIGGER workspace_billing_mode_inserted ON workspaces", SchemaNotReady),
    "the trigger of a lost workspace": ("DROP TRIGGER workspace_billing_mode_deleted ON workspaces", SchemaNotReady),
    "the trigger of an emptied table": ("DROP TRIGGER workspace_billing_mode_truncated ON workspaces", SchemaNotReady),
    "a session with triggers": (
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET session_replication_role = replica', current_database()); END $$",
        SchemaNotReady,
    ),
    "triggers of a table that inherits": ("CREATE TABLE more () INHERITS (workspaces)", SchemaNotReady),
    "numbers from the clock": (OLD_NUMBERS, SchemaNotReady),
    "the right to write": ("REVOKE UPDATE (llm_billing_mode) ON workspaces FROM billing_grpc", DatabaseDenied),
    "the right to read the log": ("REVOKE SELECT ON workspace_billing_mode_changes FROM billing_grpc", DatabaseDenied),
    "sight of every row": ("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY", DatabaseDenied),
    "writing at all": (
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$",
        DatabaseStale,
    ),
}


async def test_under_the_services_few_rights_a_migrated_database_is_enough(service_url: str) -> None:
    async with PostgresRepository.opened(service_url) as repository:
        await repository.check_administration(budget=BUDGET)


@pytest.mark.parametrize(("statement", "error"), LACKS.values(), ids=LACKS)
async def test_what_administration_lacks_is_named(
    statement: str, error: type[StorageError], database_url: str, service_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(statement.encode())
    async with PostgresRepository.opened(service_url) as repository:
        with pytest.raises(error):
            await repository.check_administration(budget=BUDGET)


async def test_a_missing_schema_is_not_logged_as_a_failure_of_the_driver(empty_database_url: str) -> None:
    # The check runs once a second, and so would the line.
    async with PostgresRepository.opened(empty_database_url) as repository:
        with capture_logs() as logged, pytest.raises(SchemaNotReady):
            await repository.check_administration(budget=BUDGET)
        assert logged == []
        migrations.up(empty_database_url)
        await repository.check_administration(budget=BUDGET)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing_grpc.server.health.CHECK_INTERVAL", 0.01)


@pytest.mark.usefixtures("quickly")
async def test_every_look_is_reported_and_every_change_logged_once() -> None:
    repository, told = InMemoryRepository(), list[bool]()
    with capture_logs() as logged:
        watching = asyncio.create_task(watch_administration(repository, told.append, budget=BUDGET))
        await until(lambda: told == [True] * len(told) and len(told) > 3)
        repository.failure = SchemaNotReady()
        await until(lambda: told[-3:] == [False] * 3)
        repository.failure = None
        await until(lambda: told[-3:] == [True] * 3)
        watching.cancel()
        await asyncio.wait((watching,))
    assert [(record["log_level"], record["event"], record.get("reason")) for record in logged] == [
        ("info", "administration works", None),
        ("warning", "administration does not work", "SCHEMA_NOT_READY"),
        ("info", "administration works", None),
    ]


async def test_a_look_takes_no_longer_than_a_second_whatever_calls_may_take() -> None:
    repository, told = InMemoryRepository(), list[bool]()
    repository.delay = 60
    watching = asyncio.create_task(watch_administration(repository, told.append, budget=60))
    async with asyncio.timeout(CHECK_INTERVAL + 2):
        while not told:
            await asyncio.sleep(0.01)
    assert told == [False]
    watching.cancel()
    await asyncio.wait((watching,))


async def test_a_partition_that_came_later_is_named_until_it_was_migrated(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute("CREATE TABLE workspaces (id uuid PRIMARY KEY) PARTITION BY HASH (id)")
        owner.execute("CREATE TABLE even PARTITION OF workspaces FOR VALUES WITH (MODULUS 2, REMAINDER 0)")
        migrations.up(empty_database_url)
        async with PostgresRepository.opened(empty_database_url) as repository:
            await repository.check_administration(budget=BUDGET)
            owner.execute("CREATE TABLE odd PARTITION OF workspaces FOR VALUES WITH (MODULUS 2, REMAINDER 1)")
            with pytest.raises(SchemaNotReady):
                await repository.check_administration(budget=BUDGET)
            assert migrations.up(empty_database_url) == ["triggers of odd"]
            await repository.check_administration(budget=BUDGET)
