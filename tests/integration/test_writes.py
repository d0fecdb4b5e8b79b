"""An acknowledged write is what the database holds, survives a crash, and never comes after its caller has given up."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import AsyncRawCursor
from structlog.testing import capture_logs

from billing_grpc.errors import ChangeNotRecorded, DatabaseStale, DatabaseTimeout, WriteNotApplied, WriteUndone
from billing_grpc.model import NO_WORKSPACE, BillingMode, StoredOverride
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.storage.postgres.connecting import PersistentConnection
from billing_grpc.storage.postgres.statements import STILL_IN_TIME, WRITE
from billing_grpc.storage.postgres.writing import OverrideWrite, moment_after, save_override
from tests.support.writes import BY, add

BUDGET: Final = 5.0


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The tables' owner, in autocommit mode."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def repository(database_url: str) -> AsyncIterator[PostgresRepository]:
    async with PostgresRepository.opened(database_url, size=4) as opened:
        yield opened


def function(body: LiteralString) -> LiteralString:
    return "CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN " + body + " END $$"


SET_BACK: Final = "UPDATE workspaces SET llm_billing_mode = 'disabled' WHERE id = NEW.id; RETURN NULL;"
UPDATED: Final = "workspace_billing_mode_updated"

# id: what the owner did, and what a write is told
UNDONE: Final[dict[str, tuple[tuple[LiteralString, ...], type[WriteUndone]]]] = {
    "a rule drops it": (
        ("CREATE RULE nothing AS ON UPDATE TO workspaces DO INSTEAD NOTHING",),
        WriteNotApplied,
    ),
    "a trigger drops it": (
        (
            function("RETURN NULL;"),
            "CREATE TRIGGER undo BEFORE UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION undo()",
        ),
        WriteNotApplied,
    ),
    "a trigger rewrites it": (
        (
            function("NEW.llm_billing_mode = 'disabled'; RETURN NEW;"),
            "CREATE TRIGGER undo BEFORE UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION undo()",
        ),
        WriteNotApplied,
    ),
    "a trigger sets it back": (
        (
            function(SET_BACK),
            (
                "CREATE TRIGGER undo AFTER UPDATE ON workspaces FOR EACH ROW WHEN (NEW.llm_billing_mode = 'byok')"
                " EXECUTE FUNCTION undo()"
            ),
        ),
        WriteNotApplied,
    ),
    "a trigger sets it back before the commit": (
        (
            function(SET_BACK),
            (
                "CREATE CONSTRAINT TRIGGER undo AFTER UPDATE ON workspaces DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
                " WHEN (NEW.llm_billing_mode = 'byok') EXECUTE FUNCTION undo()"
            ),
        ),
        WriteNotApplied,
    ),
    "a trigger refuses it": (
        (
            function("RAISE 'no';"),
            "CREATE TRIGGER undo BEFORE UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION undo()",
        ),
        WriteNotApplied,
    ),
    "a constraint refuses it": (
        ("ALTER TABLE workspaces ADD CHECK (llm_billing_mode <> 'byok')",),
        WriteNotApplied,
    ),
    "the log's trigger is disabled": (
        ("ALTER TABLE workspaces DISABLE TRIGGER " + UPDATED,),
        ChangeNotRecorded,
    ),
    "every trigger is disabled": (("ALTER TABLE workspaces DISABLE TRIGGER ALL",), ChangeNotRecorded),
    "the log drops it": (
        ("CREATE RULE nothing AS ON INSERT TO workspace_billing_mode_changes DO INSTEAD NOTHING",),
        ChangeNotRecorded,
    ),
}


@pytest.mark.parametrize(("statements", "error"), UNDONE.values(), ids=UNDONE)
async def test_a_write_that_the_database_undoes_is_rolled_back_and_said(
    repository: PostgresRepository,
    owner: psycopg.Connection[Any],
    statements: tuple[LiteralString, ...],
    error: type[WriteUndone],
) -> None:
    workspace = add(owner, "disabled")
    before = await repository.load_record(workspace, budget=BUDGET)
    for statement in statements:
        owner.execute(statement)

    with pytest.raises(error):
        await repository.save_override(workspace, BillingMode.BYOK, by=BY, etag=before.etag, budget=BUDGET)

    assert await repository.load_record(workspace, budget=BUDGET) == before
    unchanged = await repository.save_override(workspace, BillingMode.DISABLED, by=BY, budget=BUDGET)
    assert unchanged.current == before


# id: how a trigger of somebody else says no; none of these means that the database cannot be reached
WAYS_TO_REFUSE: Final = {
    "an error of its own": "RAISE 'no' USING ERRCODE = '45000'",
    "a shutdown": "RAISE 'no' USING ERRCODE = '57P01'",
    "a lost connection": "RAISE 'no' USING ERRCODE = '08006'",
    "a missing right": "RAISE 'no' USING ERRCODE = '42501'",
    "a read-only transaction": "RAISE 'no' USING ERRCODE = '25006'",
    "an assertion": "ASSERT false",
    "a missing column": "PERFORM NEW.no_such_column",
    "two rows where one may be": "PERFORM (SELECT generate_series(1, 2))",
}


@pytest.mark.parametrize("how", WAYS_TO_REFUSE.values(), ids=WAYS_TO_REFUSE)
async def test_a_trigger_that_refuses_a_write_is_not_taken_for_a_database_that_is_down(
    repository: PostgresRepository, owner: psycopg.Connection[Any], how: LiteralString
) -> None:
    workspace = add(owner, "disabled")
    owner.execute(function(how + "; RETURN NEW;"))
    owner.execute("CREATE TRIGGER undo BEFORE UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION undo()")
    with pytest.raises(WriteNotApplied):
        await repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)
    assert repository.available
    assert await repository.load_override(workspace, budget=BUDGET) == StoredOverride("disabled")


async def test_other_columns_of_a_row_stay_out_of_the_log(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    owner.execute("ALTER TABLE workspaces ADD token text DEFAULT 'sk-secret', ADD CHECK (llm_billing_mode <> 'byok')")
    workspace = add(owner)
    with capture_logs() as logged, pytest.raises(WriteNotApplied):
        await repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)
    assert "sk-secret" not in str(logged)
    assert [line["reason"] for line in logged] == ["WRITE_NOT_APPLIED"]


async def test_what_is_acknowledged_is_durable_also_where_nothing_had_to_change(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner)
    owner.execute("SET synchronous_commit = off")
    for number in range(10):
        mode = (BillingMode.BYOK, BillingMode.PLATFORM_MANAGED)[number % 2]
        owner.execute("UPDATE workspaces SET llm_billing_mode = %s", [mode.value])
        ((written,),) = owner.execute("SELECT pg_current_wal_insert_lsn()").fetchall()
        change = await repository.save_override(workspace, mode, by=BY, budget=BUDGET)
        assert not change.writes
        assert owner.execute("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", [written]).fetchall() == [(True,)]


async def test_a_write_whose_connection_had_died_before_it_began_is_made_on_another(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner)
    for mode in (BillingMode.BYOK, BillingMode.DISABLED):
        owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'billing_grpc'")
        change = await repository.save_override(workspace, mode, by=BY, budget=BUDGET)
        assert change.current.override == StoredOverride(mode.value)


@pytest.mark.parametrize(
    ("preferred", "expected"),
    [("off", "on"), ("local", "on"), ("remote_write", "on"), ("remote_apply", "remote_apply")],
)
async def test_a_commit_is_durable_whatever_the_role_prefers(
    database_url: str, owner: psycopg.Connection[Any], preferred: str, expected: str
) -> None:
    owner.execute("CREATE TABLE seen (synchronous_commit text)")
    owner.execute(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$"
    )
    owner.execute("CREATE TRIGGER see AFTER UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION see()")
    workspace = add(owner)
    url = psycopg.conninfo.make_conninfo(database_url, options=f"-c synchronous_commit={preferred}")
    async with PostgresRepository.opened(url) as repository:
        await repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)
    assert owner.execute("SELECT synchronous_commit FROM seen").fetchall() == [(expected,)]


async def test_a_transaction_that_its_service_has_left_ends_by_itself(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    owner.execute("CREATE TABLE seen (statement interval, idle interval)")
    owner.execute(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO seen VALUES (current_setting('statement_timeout')::interval,"
        " current_setting('idle_in_transaction_session_timeout')::interval); RETURN NULL; END $$"
    )
    owner.execute("CREATE TRIGGER see AFTER UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION see()")
    await repository.save_override(add(owner), BillingMode.BYOK, by=BY, budget=BUDGET)
    (seen,) = owner.execute("SELECT extract(epoch FROM statement), extract(epoch FROM idle) FROM seen").fetchall()
    assert all(0 < seconds < BUDGET for seconds in seen)


async def test_a_workspace_that_appears_after_the_lock_found_none_is_not_written(
    repository: PostgresRepository, database_url: str, owner: psycopg.Connection[Any]
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE workspace_billing_mode_changes IN ACCESS EXCLUSIVE MODE")
        workspace = add(other)
        write = asyncio.create_task(repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET))
        async with asyncio.timeout(BUDGET):
            while not owner.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall():
                await asyncio.sleep(0.01)
    change = await write
    assert change.previous.override == change.current.override == NO_WORKSPACE
    assert await repository.load_override(workspace, budget=BUDGET) == StoredOverride(None)


async def test_a_commit_that_comes_too_late_does_not_happen(
    database_url: str, owner: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    workspace = add(owner, "platform_managed")
    connection = await PersistentConnection.connect(database_url, autocommit=True, cursor_factory=AsyncRawCursor)
    async with connection:
        for seconds, error in ((-0.001, DatabaseTimeout), (BUDGET, None)):
            deadline = asyncio.get_running_loop().time() + seconds
            write = OverrideWrite(UUID(workspace), BillingMode.BYOK, BY, "", deadline)
            if error is None:
                await save_override(connection, write, "5s")
            else:
                with pytest.raises(error):
                    await save_override(connection, write, "5s")
            stored = owner.execute("SELECT llm_billing_mode FROM workspaces").fetchone()
            assert stored == ("platform_managed" if error else "byok",)
    assert [record for record in caplog.records if record.name.startswith("psycopg")] == []


async def test_a_write_that_is_given_up_in_the_moment_before_its_commit_is_sent_does_not_happen(
    database_url: str, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "platform_managed")
    write = OverrideWrite(UUID(workspace), BillingMode.BYOK, BY, "", asyncio.get_running_loop().time() + BUDGET)

    class GivenUp(PersistentConnection):
        async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            cursor = await super().execute(query, *args, **kwargs)
            if query == STILL_IN_TIME:
                write.deadline = asyncio.get_running_loop().time()
            return cursor

    connection = await GivenUp.connect(database_url, autocommit=True, cursor_factory=AsyncRawCursor)
    async with connection:
        with pytest.raises(DatabaseTimeout):
            await save_override(connection, write, "5s")
        assert not write.commit_sent
        assert owner.execute("SELECT llm_billing_mode FROM workspaces").fetchone() == ("platform_managed",)
        assert (await connection.execute("SELECT 1")).rowcount == 1


async def test_a_table_that_may_lose_rows_since_the_write_began_takes_no_write(
    database_url: str, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "platform_managed")

    class Overtaken(PersistentConnection):
        async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            if query == WRITE:
                owner.execute("CREATE UNLOGGED TABLE more () INHERITS (workspaces)")
            return await super().execute(query, *args, **kwargs)

    connection = await Overtaken.connect(database_url, autocommit=True, cursor_factory=AsyncRawCursor)
    async with connection:
        deadline = asyncio.get_running_loop().time() + BUDGET
        with pytest.raises(DatabaseStale):
            await save_override(connection, OverrideWrite(UUID(workspace), BillingMode.BYOK, BY, "", deadline), "5s")
    assert owner.execute("SELECT llm_billing_mode FROM workspaces").fetchone() == ("platform_managed",)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 3599.0, -1.0])
def test_a_deadline_is_right_in_the_night_in_which_summer_time_ends(seconds: float) -> None:
    for fold in (0, 1):
        moment = datetime(2026, 11, 1, 1, 59, 59, 700_000, tzinfo=ZoneInfo("America/New_York"), fold=fold)
        assert moment_after(moment, seconds).timestamp() - moment.timestamp() == pytest.approx(seconds)


async def test_reads_go_on_while_as_many_writes_as_there_are_connections_wait_for_a_row(
    repository: PostgresRepository, database_url: str, owner: psycopg.Connection[Any]
) -> None:
    locked, other = add(owner), add(owner, "byok")
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", [locked])
        writes = [
            asyncio.create_task(repository.save_override(locked, BillingMode.BYOK, by=BY, budget=BUDGET))
            for _ in range(8)
        ]
        async with asyncio.timeout(BUDGET):
            while repository.pool_stats().in_use < 2:
                await asyncio.sleep(0.01)
        reads = await asyncio.gather(*(repository.load_override(other, budget=BUDGET) for _ in range(50)))
        assert reads == [StoredOverride("byok")] * 50
        assert not any(write.done() for write in writes)
    await asyncio.gather(*writes)
