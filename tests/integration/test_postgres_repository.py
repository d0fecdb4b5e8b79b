"""The repository on a real Postgres: what its SQL does under concurrency, odd schemas, odd bytes and few rights."""

import asyncio
import itertools
import json
import random
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.testing import capture_logs

from billing_grpc.errors import (
    DatabaseDenied,
    DatabaseStale,
    DatabaseTimeout,
    DatabaseUnreachable,
    SchemaNotReady,
    SettingsError,
    StorageError,
    ValueUnreadable,
    WriteNotApplied,
)
from billing_grpc.model import BillingMode, OverrideChange, ResolutionError, StoredOverride
from billing_grpc.page_token import LogPosition
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.storage.postgres.connection import Connection
from billing_grpc.storage.postgres.pool import BoundedPool
from tests.databases import LATIN1, SQL_ASCII, unchecked_database
from tests.support.polling import until_true
from tests.support.writes import BY, add, overrides

BUDGET: Final = 1.0
PATIENT: Final = 10.0
"""A budget for tests that are not about time."""

NOT_UTF8: Final = b"byok\xff\xfe"
SECRET: Final = "p4ssw0rd-of-the-tests"

Call = Callable[[PostgresRepository, str], Awaitable[object]]


async def load(repository: PostgresRepository, workspace: str) -> object:
    return await repository.load_override(workspace, budget=BUDGET)


async def load_many(repository: PostgresRepository, workspace: str) -> object:
    return await repository.load_overrides([workspace], budget=BUDGET)


async def save(repository: PostgresRepository, workspace: str) -> object:
    return await repository.save_override(workspace, BillingMode.DISABLED, by=BY, budget=BUDGET)


READS: Final = (load, load_many)
CALLS: Final = (load, load_many, save)


@dataclass(frozen=True)
class Breakage:
    """Something done to the database, and what the calls then raise.

    Attributes:
        statements: run one by one as its owner; `{role}` is the service's role, `{database}` the database.
        calls: those that fail.
        error: what they raise.
        connect_with: added to the service's connection string.
    """

    statements: tuple[str, ...]
    calls: tuple[Call, ...]
    error: type[StorageError]
    connect_with: tuple[tuple[str, str], ...] = ()


DROP_CHECK: Final = "ALTER TABLE workspaces DROP CONSTRAINT workspaces_llm_billing_mode_check"
GRANT_LEAST: Final = (
    "GRANT SELECT ON workspaces TO {role}",
    "GRANT UPDATE (llm_billing_mode) ON workspaces TO {role}",
    "GRANT SELECT ON workspace_billing_mode_changes TO {role}",
)
DROP_TRIGGERS: Final = (
    "DROP TRIGGER workspace_billing_mode_updated ON workspaces",
    "DROP TRIGGER workspace_billing_mode_inserted ON workspaces",
    "DROP TRIGGER workspace_billing_mode_deleted ON workspaces",
)
BREAKAGES: Final = {
    "no_table": Breakage(("DROP TABLE workspaces",), CALLS, SchemaNotReady),
    # Without the column the role has no right to write anything, which a write notices first.
    "no_mode_column": Breakage(("ALTER TABLE workspaces DROP COLUMN llm_billing_mode CASCADE",), READS, SchemaNotReady),
    "no_change_log": Breakage((*DROP_TRIGGERS, "DROP TABLE workspace_billing_mode_changes"), (save,), SchemaNotReady),
    "no_id_column": Breakage(("ALTER TABLE workspaces RENAME COLUMN id TO key",), CALLS, SchemaNotReady),
    "id_is_text": Breakage((*DROP_TRIGGERS, "ALTER TABLE workspaces ALTER COLUMN id TYPE text"), CALLS, SchemaNotReady),
    "id_is_a_number": Breakage(
        (
            *DROP_TRIGGERS,
            "ALTER TABLE workspaces DROP COLUMN id",
            "ALTER TABLE workspaces ADD COLUMN id bigserial PRIMARY KEY",
        ),
        CALLS,
        SchemaNotReady,
    ),
    "no_select": Breakage(("REVOKE SELECT ON workspaces FROM {role}",), CALLS, DatabaseDenied),
    "no_update": Breakage(("REVOKE UPDATE (llm_billing_mode) ON workspaces FROM {role}",), (save,), DatabaseDenied),
    # Postgres does not look into a schema that the role may not use, and so finds no table.
    "no_schema_usage": Breakage(("REVOKE USAGE ON SCHEMA public FROM PUBLIC",), CALLS, SchemaNotReady),
    "no_connect": Breakage(("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC",), (load,), DatabaseDenied),
    # Rows that a policy hides look like workspaces that do not exist, which inherit: a hidden "platform_managed" would open.
    "rows_hidden_by_a_policy": Breakage(("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY",), CALLS, DatabaseDenied),
    "no_login": Breakage(("ALTER ROLE {role} NOLOGIN",), (save,), DatabaseDenied),
    "another_schema": Breakage((), CALLS, SchemaNotReady, (("options", "-c search_path=pg_catalog"),)),
    "read_only": Breakage((), CALLS, DatabaseStale, (("options", "-c default_transaction_read_only=on"),)),
    "no_such_database": Breakage((), (load,), DatabaseUnreachable, (("dbname", "no_such_database"),)),
    "broken_expression": Breakage(
        (
            "ALTER TABLE workspaces RENAME TO stored",
            "CREATE VIEW workspaces AS SELECT id, (1 / length(name))::text AS llm_billing_mode FROM stored",
            "GRANT SELECT ON workspaces TO {role}",
        ),
        READS,
        ValueUnreadable,
    ),
}

# Connects with a password in every way that fails, at the most talkative level, and prints what was raised.
LOUD: Final = """
import asyncio, sys
from billing_grpc.server.telemetry import logs
from billing_grpc.errors import BillingError
from billing_grpc.storage.postgres import PostgresRepository
logs.configure("json", "DEBUG")
async def main():
    for url in sys.argv[1:]:
        try:
            async with PostgresRepository.opened(url) as repository:
                await repository.load_override("00000000-0000-0000-0000-000000000000", budget=0.3)
        except BillingError as error:
            print(type(error).__name__, error)
asyncio.run(main())
"""


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The database's owner, in autocommit mode."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(owner: psycopg.Connection[Any]) -> Iterator[str]:
    """A role with the rights that the service needs and no others."""
    name = f"service_{uuid.uuid4().hex}"
    run(owner, "CREATE ROLE {role} LOGIN", *GRANT_LEAST, role=name)
    yield name
    run(owner, "DROP OWNED BY {role}", "DROP ROLE {role}", role=name)


@pytest.fixture
async def repository(service_url: str) -> AsyncIterator[PostgresRepository]:
    """A repository that has all the time it wants, under the role that the service has in production."""
    async with PostgresRepository.opened(service_url, longest_budget=PATIENT) as opened:
        yield opened


@pytest.fixture
def sql_ascii_url(cluster_url: str) -> Iterator[str]:
    with unchecked_database(cluster_url, SQL_ASCII) as url:
        yield url


def run(connection: psycopg.Connection[Any], *statements: str, **names: str) -> None:
    for statement in statements:
        connection.execute(statement.format(**names).encode())


def stored(connection: psycopg.Connection[Any], workspace: str) -> str | None:
    row = connection.execute("SELECT llm_billing_mode FROM workspaces WHERE id = %s", [workspace]).fetchone()
    assert row is not None
    text: str | None = row[0]
    return text


def backends(connection: psycopg.Connection[Any]) -> set[int]:
    """The process ids of the server's sessions for repositories on this database."""
    found = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'billing_grpc'"
    )
    return {row[0] for row in found}


def waiting_for_a_lock(connection: psycopg.Connection[Any]) -> set[int]:
    found = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'billing_grpc'"
        " AND wait_event_type = 'Lock'"
    )
    return {row[0] for row in found}


until: Final = partial(until_true, seconds=5)


# Concurrency


async def test_fifty_concurrent_writers_are_told_one_history_that_is_the_true_one(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    run(
        owner,
        "CREATE TABLE history (number bigint GENERATED ALWAYS AS IDENTITY, previous text, current text)",
        "GRANT INSERT ON history TO PUBLIC",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN"
        " INSERT INTO history (previous, current) VALUES (OLD.llm_billing_mode, NEW.llm_billing_mode);"
        " RETURN NULL; END'",
        "CREATE TRIGGER note AFTER UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION note()",
    )
    workspace = add(owner, "byok")
    modes = [None, *BillingMode] * 13
    random.Random(20260526).shuffle(modes)  # noqa: S311 - an order, the same in every run
    with psycopg.connect(conninfo_of(owner)) as holder:
        holder.execute("SELECT FROM workspaces FOR UPDATE")
        calls = [
            asyncio.create_task(repository.save_override(workspace, mode, by=BY, budget=PATIENT)) for mode in modes[:50]
        ]
        await until(lambda: len(waiting_for_a_lock(owner)) == 4)  # the other connections are for reads alone
    changes = await asyncio.gather(*calls)
    assert [change.current.override.text for change in changes] == [mode and mode.value for mode in modes[:50]]
    true = owner.execute("SELECT previous, current FROM history ORDER BY number").fetchall()
    told = [(change.previous.override.text, change.current.override.text) for change in changes]
    assert Counter(pair for pair in told if pair[0] != pair[1]) == Counter(true)
    assert [previous for previous, _ in true] == ["byok", *(current for _, current in true)][: len(true)]
    assert stored(owner, workspace) == true[-1][1]
    # A write that changed nothing was told a state that there really was.
    assert {previous for previous, _ in told} <= {"byok", *(current for _, current in true)}


async def test_heartbeats_and_saves_on_one_row_do_not_lose_each_other(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    run(owner, "ALTER TABLE workspaces ADD COLUMN beats integer NOT NULL DEFAULT 0")
    workspace = add(owner)
    modes = [BillingMode.BYOK, BillingMode.DISABLED] * 20

    async def beat() -> None:
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
            for _ in range(50):
                await connection.execute("UPDATE workspaces SET beats = beats + 1, updated_at = now()")

    async def switch() -> list[OverrideChange]:
        return [await repository.save_override(workspace, mode, by=BY, budget=PATIENT) for mode in modes]

    changes, _, _ = await asyncio.gather(switch(), beat(), beat())
    expected = [None, *modes]
    assert [(change.previous.override.text, change.current.override.text) for change in changes] == [
        (before and before.value, after and after.value) for before, after in itertools.pairwise(expected)
    ]
    assert stored(owner, workspace) == "disabled"
    assert owner.execute("SELECT beats FROM workspaces").fetchall() == [(100,)]


async def test_a_save_waits_for_an_open_heartbeat_and_keeps_what_it_wrote(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner, "byok")
    with psycopg.connect(database_url) as other:
        other.execute("UPDATE workspaces SET name = 'alive'")
        call = asyncio.create_task(repository.save_override(workspace, BillingMode.DISABLED, by=BY, budget=PATIENT))
        await until(lambda: len(waiting_for_a_lock(owner)) == 1)
        other.commit()
    assert overrides(await call) == (StoredOverride("byok"), StoredOverride("disabled"))
    assert owner.execute("SELECT name, llm_billing_mode FROM workspaces").fetchall() == [("alive", "disabled")]


async def test_a_save_sees_a_mode_that_was_committed_while_it_waited(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner, "byok")
    with psycopg.connect(database_url) as other:
        other.execute("UPDATE workspaces SET llm_billing_mode = 'platform_managed'")
        call = asyncio.create_task(repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=PATIENT))
        await until(lambda: len(waiting_for_a_lock(owner)) == 1)
        other.commit()
    assert overrides(await call) == (StoredOverride("platform_managed"), StoredOverride("byok"))
    assert stored(owner, workspace) == "byok"


async def test_a_save_that_changes_nothing_leaves_the_row_untouched(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "byok")
    before = owner.execute("SELECT xmin, * FROM workspaces").fetchall()
    await repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=PATIENT)
    assert owner.execute("SELECT xmin, * FROM workspaces").fetchall() == before


async def test_a_save_changes_the_mode_and_no_other_column(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "byok")
    others = "SELECT id, name, created_at, updated_at FROM workspaces"
    before = owner.execute(others).fetchall()
    await repository.save_override(workspace, None, by=BY, budget=PATIENT)
    assert owner.execute(others).fetchall() == before


# Callers that go away


async def test_a_write_is_rolled_back_if_its_caller_is_cancelled_and_the_connection_lives_on(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner)
    await until(lambda: len(backends(owner)) == 8)
    before = backends(owner)
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM workspaces FOR UPDATE")
        call = asyncio.create_task(repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=PATIENT))
        await until(lambda: len(waiting_for_a_lock(owner)) == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await until(lambda: repository.pool_stats().in_use == 0)
    assert stored(owner, workspace) is None
    assert backends(owner) == before


async def test_fifty_cancelled_callers_leak_no_connection(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner, "byok")
    await until(lambda: len(backends(owner)) == 8)
    before = backends(owner)
    for _ in range(5):
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")
            calls = [asyncio.create_task(repository.load_overrides([workspace], budget=PATIENT)) for _ in range(10)]
            await until(lambda: len(waiting_for_a_lock(owner)) == 8)
            for call in calls:
                call.cancel()
            assert {type(each) for each in await asyncio.gather(*calls, return_exceptions=True)} == {
                asyncio.CancelledError
            }
    loads = await asyncio.gather(*(repository.load_override(workspace, budget=PATIENT) for _ in range(8)))
    assert loads == [StoredOverride("byok")] * 8
    assert backends(owner) == before


async def test_closing_waits_for_the_work_of_a_caller_that_went_away(
    owner: psycopg.Connection[Any], database_url: str
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE workspace_billing_mode_changes")
        async with PostgresRepository.opened(database_url, longest_budget=PATIENT) as repository:
            work = repository.record_org_default(BillingMode.BYOK, server="one", origin="file", budget=PATIENT)
            call = asyncio.create_task(work)
            await until(lambda: len(waiting_for_a_lock(owner)) == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            asyncio.get_running_loop().call_later(0.3, other.commit)
        assert owner.execute("SELECT new_override FROM workspace_billing_mode_changes").fetchall() == [("byok",)]


async def test_closing_ends_work_that_the_end_of_its_connection_does_not_end(database_url: str) -> None:
    async def read(connection: Connection) -> None:
        await connection.read("SELECT 1", [])

    async def never_end(connection: Connection) -> None:
        del connection
        await asyncio.Event().wait()

    async with asyncio.timeout(PATIENT):
        pool = BoundedPool(database_url, size=2, longest_budget=BUDGET, probe=read)
        async with pool.opened():
            await pool.run(read, budget=PATIENT)
            task, _ = pool.start_read(never_end, asyncio.get_running_loop().time() + BUDGET)
            await asyncio.sleep(0)
    assert task.cancelled()


async def test_no_transaction_stays_open_after_a_call(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner)
    for call in CALLS:
        await call(repository, workspace)

    def busy() -> list[tuple[Any, ...]]:
        return owner.execute(
            "SELECT state, xact_start FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'billing_grpc' AND state <> 'idle'"
        ).fetchall()

    await until(lambda: not busy())


# Bytes and types


async def test_a_text_that_is_not_utf8_is_unreadable_and_takes_no_other_row_with_it(sql_ascii_url: str) -> None:
    with psycopg.connect(sql_ascii_url, autocommit=True) as connection:
        good, bad, inherits = add(connection, "byok"), add(connection), add(connection)
        connection.execute(
            "UPDATE workspaces SET llm_billing_mode = convert_from(%s, 'SQL_ASCII') WHERE id = %s", [NOT_UTF8, bad]
        )
    async with PostgresRepository.opened(sql_ascii_url) as repository:
        with pytest.raises(ValueUnreadable) as raised:
            await repository.load_override(bad, budget=BUDGET)
        assert str(raised.value) == ValueUnreadable.public_message
        assert dict(await repository.load_overrides([good, bad, inherits], budget=BUDGET)) == {
            good: StoredOverride("byok"),
            bad: ResolutionError("VALUE_UNREADABLE", ValueUnreadable.public_message),
            inherits: StoredOverride(None),
        }
        assert await repository.load_override(good, budget=BUDGET) == StoredOverride("byok")


async def test_a_database_of_another_encoding_gets_the_reason_as_far_as_it_can_store_it(cluster_url: str) -> None:
    with unchecked_database(cluster_url, LATIN1) as url:
        with psycopg.connect(url) as connection:
            workspace = add(connection, "gratuité")
        async with PostgresRepository.opened(make_conninfo(url, user=migrations.SERVICE_ROLE)) as repository:
            assert await repository.load_override(workspace, budget=PATIENT) == StoredOverride("gratuité")
            by = replace(BY, reason="à l'essai \N{PARTY POPPER}")
            change = await repository.save_override(workspace, BillingMode.BYOK, by=by, budget=PATIENT)
            assert overrides(change) == (StoredOverride("gratuité"), StoredOverride("byok"))
            recorded = (
                await repository.list_changes(workspace, position=LogPosition(), limit=1, budget=PATIENT)
            ).changes
            assert [(each.reason, each.previous_override) for each in recorded] == [("à l'essai ?", "gratuité")]


async def test_a_row_that_is_not_utf8_is_repaired_by_saving_a_mode(sql_ascii_url: str) -> None:
    with psycopg.connect(sql_ascii_url, autocommit=True) as connection:
        bad = add(connection)
        connection.execute("UPDATE workspaces SET llm_billing_mode = convert_from(%s, 'SQL_ASCII')", [NOT_UTF8])
    async with PostgresRepository.opened(sql_ascii_url) as repository:
        change = await repository.save_override(bad, BillingMode.BYOK, by=BY, budget=BUDGET)
        again = await repository.save_override(bad, BillingMode.BYOK, by=BY, budget=BUDGET)
    assert overrides(change) == (StoredOverride(NOT_UTF8.decode(errors="replace")), StoredOverride("byok"))
    assert overrides(again) == (StoredOverride("byok"), StoredOverride("byok"))


@pytest.mark.parametrize("kind", ["varchar(16)", "varchar", "char(20)", "modes", "short_text"])
async def test_another_type_of_the_column_makes_no_difference(empty_database_url: str, kind: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE TYPE modes AS ENUM ('platform_managed', 'byok', 'disabled')")
        connection.execute("CREATE DOMAIN short_text AS text CHECK (length(VALUE) < 20)")
        connection.execute(f"CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode {kind})")
        await asyncio.to_thread(migrations.up, empty_database_url)
        workspace = str(uuid.uuid4())
        connection.execute("INSERT INTO workspaces VALUES (%s, 'byok')", [workspace])
    async with PostgresRepository.opened(empty_database_url) as repository:
        assert await repository.load_override(workspace, budget=BUDGET) == StoredOverride("byok")
        for mode, text in ((BillingMode.PLATFORM_MANAGED, "platform_managed"), (None, None)):
            change = await repository.save_override(workspace, mode, by=BY, budget=BUDGET)
            assert change.current.override == StoredOverride(text)
            assert await repository.load_override(workspace, budget=BUDGET) == StoredOverride(text)
        await repository.check_administration(budget=BUDGET)


@pytest.mark.parametrize("kind", ["varchar(12)", "char(4)", "modes", "jsonb", "short_text"])
async def test_a_column_that_cannot_hold_every_mode_is_said(empty_database_url: str, kind: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE TYPE modes AS ENUM ('byok', 'disabled')")
        connection.execute("CREATE DOMAIN short_text AS varchar(12)")
        connection.execute(f"CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode {kind})")
        await asyncio.to_thread(migrations.up, empty_database_url)
        stored = '"byok"' if kind == "jsonb" else "byok"
        workspace = str(uuid.uuid4())
        connection.execute("INSERT INTO workspaces VALUES (%s, %s)", [workspace, stored])
    async with PostgresRepository.opened(empty_database_url) as repository:
        with pytest.raises(WriteNotApplied):
            await repository.save_override(workspace, BillingMode.PLATFORM_MANAGED, by=BY, budget=BUDGET)
        assert await repository.load_override(workspace, budget=BUDGET) == StoredOverride(stored)
        with capture_logs() as logged, pytest.raises(SchemaNotReady):
            await repository.check_administration(budget=BUDGET)
    assert ["llm_billing_mode" in line["text"] for line in logged] == [True]


# Rights


async def test_the_role_with_the_least_rights_can_do_everything(
    owner: psycopg.Connection[Any], database_url: str, role: str
) -> None:
    workspace, other = add(owner, "byok"), add(owner)
    async with PostgresRepository.opened(make_conninfo(database_url, user=role)) as repository:
        assert await repository.load_override(workspace, budget=BUDGET) == StoredOverride("byok")
        change = await repository.save_override(workspace, BillingMode.DISABLED, by=BY, budget=BUDGET)
        assert overrides(change) == (StoredOverride("byok"), StoredOverride("disabled"))
        assert dict(await repository.load_overrides([workspace, other], budget=BUDGET)) == {
            workspace: StoredOverride("disabled"),
            other: StoredOverride(None),
        }
        roles = owner.execute(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE pid = ANY(%s)", [list(backends(owner))]
        )
        assert roles.fetchall() == [(role,)]


# Errors


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)
async def test_a_failure_is_named_and_the_drivers_words_stay_in_the_log(
    owner: psycopg.Connection[Any], database_url: str, role: str, breakage: Breakage
) -> None:
    workspace = add(owner, "byok")
    database = str(conninfo_to_dict(database_url)["dbname"])
    run(owner, *breakage.statements, role=role, database=database)
    url = make_conninfo(database_url, **{"user": role, **dict(breakage.connect_with)})
    with capture_logs():
        async with PostgresRepository.opened(url, longest_budget=BUDGET, size=2) as repository:
            for call in breakage.calls:
                with pytest.raises(StorageError) as raised:
                    await call(repository, workspace)
                assert type(raised.value) is breakage.error
                assert str(raised.value) == breakage.error.public_message
                assert raised.value.attachments == ()


@pytest.mark.parametrize("kind", ["text NOT NULL DEFAULT 'byok'", "text GENERATED ALWAYS AS ('byok') STORED"])
async def test_a_column_that_cannot_be_cleared_or_set_is_said(empty_database_url: str, kind: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode {kind})")
    await asyncio.to_thread(migrations.up, empty_database_url)
    async with PostgresRepository.opened(empty_database_url) as repository:
        with pytest.raises(SchemaNotReady):
            await repository.check_administration(budget=BUDGET)


@pytest.mark.parametrize("name", ["svc@proj.iam", "Billing Prod", "billing.prod"])
async def test_a_login_role_may_have_any_name(owner: psycopg.Connection[Any], database_url: str, name: str) -> None:
    login = f"{name} {uuid.uuid4().hex[:6]}"
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE billing_grpc").format(sql.Identifier(login)))
    workspace = add(owner, "byok")
    async with PostgresRepository.opened(make_conninfo(database_url, user=login), size=2) as repository:
        assert await repository.load_override(workspace, budget=BUDGET) == StoredOverride("byok")


async def test_a_database_that_no_client_can_read_costs_one_connection_at_a_time(
    cluster_url: str, owner: psycopg.Connection[Any]
) -> None:
    name = "mule_" + uuid.uuid4().hex
    owner.execute(
        sql.SQL(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING 'MULE_INTERNAL' LOCALE_PROVIDER libc LOCALE 'C'"
        ).format(sql.Identifier(name))
    )
    async with PostgresRepository.opened(make_conninfo(cluster_url, dbname=name), size=2) as repository:
        for _ in range(10):
            with pytest.raises(StorageError):
                await repository.load_override(str(uuid.uuid4()), budget=0.3)
        ((count,),) = owner.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [name]).fetchall()
        assert count <= 4


async def test_reads_work_as_soon_as_the_migrations_have_run_while_the_repository_is_open(
    empty_database_url: str,
) -> None:
    async with PostgresRepository.opened(empty_database_url) as repository:
        workspace = str(uuid.uuid4())
        with pytest.raises(SchemaNotReady):
            await load(repository, workspace)
        await asyncio.to_thread(migrations.up, empty_database_url)
        with psycopg.connect(empty_database_url, autocommit=True) as connection:
            workspace = add(connection, "byok")
        assert await repository.load_override(workspace, budget=BUDGET) == StoredOverride("byok")


async def test_a_transaction_timeout_of_the_role_ends_no_call_that_waits_for_a_lock(
    owner: psycopg.Connection[Any], database_url: str, service_url: str
) -> None:
    owner.execute(
        sql.SQL("ALTER ROLE billing_grpc IN DATABASE {} SET transaction_timeout = '50ms'").format(
            sql.Identifier(owner.info.dbname)
        )
    )
    workspace = add(owner, "byok")
    async with PostgresRepository.opened(service_url, longest_budget=PATIENT) as repository:
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")
            read = asyncio.create_task(repository.load_override(workspace, budget=PATIENT))
            await asyncio.sleep(1)  # a read that loses its session is repeated for a while
        assert await read == StoredOverride("byok")


@pytest.mark.parametrize("call", CALLS, ids=["load", "load_many", "save"])
async def test_a_query_that_an_operator_cancels_is_a_timeout_and_its_connection_lives_on(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str, call: Call
) -> None:
    workspace = add(owner, "byok")
    await until(lambda: len(backends(owner)) == 8)
    before = backends(owner)
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")
        running = asyncio.ensure_future(call(repository, workspace))
        await until(lambda: len(waiting_for_a_lock(owner)) == 1)
        owner.execute("SELECT pg_cancel_backend(%s)", [waiting_for_a_lock(owner).pop()])
        with pytest.raises(DatabaseTimeout) as raised:
            await running
    assert str(raised.value) == DatabaseTimeout.public_message
    assert stored(owner, workspace) == "byok"
    assert await repository.load_override(workspace, budget=BUDGET) == StoredOverride("byok")
    assert backends(owner) == before


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{SECRET}@[half/db",
        f"postgresql://user:{SECRET}@host/db?no_such_option=1",
        f"host=db password='{SECRET}",
        f"host=db password={SECRET} no_such_option=1",
        f"user:{SECRET}@host/db",
        f"postgresql://user:{SECRET}%zz@host/db",
    ],
    ids=["bracket", "unknown_option", "quote", "unknown_key", "no_scheme", "percent"],
)
async def test_an_address_that_libpq_cannot_read_is_a_wrong_setting_and_is_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        async with PostgresRepository.opened(url):
            pass
    assert "libpq" in str(raised.value)
    assert SECRET not in f"{raised.value} {raised.value.problems}"


def test_the_password_is_in_no_log_line_however_the_connection_fails(cluster_url: str) -> None:
    socket_directory = str(conninfo_to_dict(cluster_url)["host"])
    urls = [
        f"postgresql://user:{SECRET}@127.0.0.1:1/db",
        f"host=127.0.0.1,localhost port=1 user=user password={SECRET} dbname=db",
        f"host=/no/such/directory user=user password={SECRET} dbname=db",
        f"host={socket_directory} user=no_such_role password={SECRET} dbname=db",
        f"postgresql://user:{SECRET}@[half/db",
    ]
    ended = subprocess.run([sys.executable, "-c", LOUD, *urls], capture_output=True, text=True, timeout=30, check=True)
    assert len(ended.stdout.splitlines()) == len(urls)
    events = [json.loads(line)["event"] for line in ended.stderr.splitlines()]
    assert events.count("cannot connect to the database") >= len(urls) - 1
    assert SECRET not in ended.stdout + ended.stderr


def conninfo_of(connection: psycopg.Connection[Any]) -> str:
    return make_conninfo(connection.info.dsn)
