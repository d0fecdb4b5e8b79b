"""The change log on a real Postgres: what is recorded, who is believed, and that nothing is lost or made up."""

import asyncio
import itertools
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from billing_grpc.errors import DatabaseTimeout, StorageError, WriteNotApplied
from billing_grpc.model import BillingMode, Change, ChangeNote, StoredOverride
from billing_grpc.page_token import LogPosition
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository
from tests.support.writes import BY, add

BUDGET: Final = 10.0
MODES: Final = [BillingMode.BYOK, BillingMode.DISABLED, BillingMode.PLATFORM_MANAGED, None]


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The tables' owner, in autocommit mode: the workspace server."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def stranger(owner: psycopg.Connection[Any], database_url: str) -> Iterator[str]:
    """The address for a role that may write the column and has nothing to do with the service."""
    name = f"stranger_{uuid.uuid4().hex}"
    role = sql.Identifier(name)
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    owner.execute(sql.SQL("GRANT SELECT, UPDATE, INSERT, DELETE ON workspaces TO {}").format(role))
    owner.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(role))
    yield make_conninfo(database_url, user=name)
    owner.execute(sql.SQL("DROP OWNED BY {}").format(role))
    owner.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.fixture
async def repository(service_url: str) -> AsyncIterator[PostgresRepository]:
    """The repository under exactly the role that the service has in production."""
    async with PostgresRepository.opened(service_url, longest_budget=BUDGET) as opened:
        yield opened


async def log_of(repository: PostgresRepository, workspace: str) -> list[Change[int]]:
    """Oldest first."""
    return list(
        reversed((await repository.list_changes(workspace, position=LogPosition(), limit=1000, budget=BUDGET)).changes)
    )


async def stored(repository: PostgresRepository, workspace: str) -> str | None:
    return (await repository.load_override(workspace, budget=BUDGET)).text


# What is recorded


async def test_a_write_is_recorded_with_who_why_and_for_which_request(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner)
    by = ChangeNote("controlplane", "own contract \U0001f511", "request-7", "alice@example.com")

    change = await repository.save_override(workspace, BillingMode.BYOK, by=by, budget=BUDGET)

    (recorded,) = await log_of(repository, workspace)
    assert (recorded.previous_override, recorded.new_override) == (None, "byok")
    assert (recorded.principal, recorded.reason, recorded.request_id) == (by.principal, by.reason, by.request_id)
    assert (recorded.database_user, recorded.actor) == (migrations.SERVICE_ROLE, by.actor)
    assert change.current.change_id == recorded.change_id
    assert change.current.change_time == recorded.change_time
    assert change.current.changed_by == "controlplane"
    assert change.previous.etag == "0"
    assert await repository.load_record(workspace, budget=BUDGET) == change.current


async def test_a_direct_update_is_recorded_with_its_database_user_and_never_refused(
    repository: PostgresRepository, owner: psycopg.Connection[Any], stranger: str
) -> None:
    workspace = add(owner)
    owner.execute("UPDATE workspaces SET llm_billing_mode = 'disabled', name = 'renamed' WHERE id = %s", [workspace])
    with psycopg.connect(stranger, autocommit=True) as connection:
        connection.execute("UPDATE workspaces SET llm_billing_mode = 'byok' WHERE id = %s", [workspace])
        stranger_name = connection.info.user

    recorded = await log_of(repository, workspace)

    assert [(each.previous_override, each.new_override) for each in recorded] == [
        (None, "disabled"),
        ("disabled", "byok"),
    ]
    assert [each.database_user for each in recorded] == [owner.info.user, stranger_name]
    assert [(each.principal, each.reason, each.request_id) for each in recorded] == [("", "", "")] * 2
    assert (await repository.load_record(workspace, budget=BUDGET)).changed_by == f"database_user:{stranger_name}"


async def test_a_heartbeat_and_a_rewrite_of_the_same_mode_record_nothing_and_keep_the_etag(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "byok")
    before = await repository.load_record(workspace, budget=BUDGET)
    owner.execute("UPDATE workspaces SET updated_at = now() WHERE id = %s", [workspace])
    owner.execute("UPDATE workspaces SET llm_billing_mode = 'byok' WHERE id = %s", [workspace])
    change = await repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)

    assert change.current == change.previous == before
    assert len(await log_of(repository, workspace)) == 1


async def test_there_and_back_again_is_another_etag(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "byok")
    etags = [(await repository.load_record(workspace, budget=BUDGET)).etag]
    for mode in ("disabled", "byok"):
        owner.execute("UPDATE workspaces SET llm_billing_mode = %s WHERE id = %s", [mode, workspace])
        etags.append((await repository.load_record(workspace, budget=BUDGET)).etag)

    assert len(set(etags)) == 3


async def test_a_workspace_that_comes_and_goes_with_a_mode_leaves_a_whole_chain(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "byok")
    owner.execute("DELETE FROM workspaces WHERE id = %s", [workspace])
    owner.execute("INSERT INTO workspaces (id) VALUES (%s)", [workspace])
    await repository.save_override(workspace, BillingMode.DISABLED, by=BY, budget=BUDGET)

    recorded = await log_of(repository, workspace)

    assert [(each.previous_override, each.new_override) for each in recorded] == [
        (None, "byok"),
        ("byok", None),
        (None, "disabled"),
    ]


async def test_a_workspace_that_gets_another_id_ends_one_chain_and_begins_another(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    before, after = add(owner, "byok"), str(uuid.uuid4())
    owner.execute("UPDATE workspaces SET id = %s, llm_billing_mode = 'disabled' WHERE id = %s", [after, before])

    assert [(each.previous_override, each.new_override) for each in await log_of(repository, before)] == [
        (None, "byok"),
        ("byok", None),
    ]
    assert [(each.previous_override, each.new_override) for each in await log_of(repository, after)] == [
        (None, "disabled")
    ]


async def test_emptying_the_table_is_recorded_for_every_workspace_that_had_a_mode(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspaces = [add(owner, "byok"), add(owner, "disabled"), add(owner)]
    owner.execute("TRUNCATE workspaces")

    every = (await repository.list_changes(None, position=LogPosition(), limit=100, budget=BUDGET)).changes
    assert {(each.workspace_id, each.previous_override) for each in every if each.new_override is None} == {
        (workspaces[0], "byok"),
        (workspaces[1], "disabled"),
    }


async def test_a_workspace_that_appears_during_a_write_is_there_or_not_but_never_both(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    for _ in range(60):
        workspace = str(uuid.uuid4())
        insert = asyncio.to_thread(owner.execute, "INSERT INTO workspaces (id) VALUES (%s)", [workspace])
        save = repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)
        change, _ = await asyncio.gather(save, insert)
        assert (await stored(repository, workspace)) == (change.current.override.text)
        assert change.previous.override.exists == change.current.override.exists


async def test_a_write_is_three_round_trips_and_no_change_two(service_url: str, owner: psycopg.Connection[Any]) -> None:
    # Through a relay that counts how often the server is waited for: each time the client sends after an answer.
    workspace = add(owner)
    async with relayed(service_url) as (url, trips), PostgresRepository.opened(url, size=1) as repository:
        await repository.load_override(workspace, budget=BUDGET)
        for mode, expected in ((BillingMode.BYOK, 3), (BillingMode.DISABLED, 3), (BillingMode.DISABLED, 2)):
            trips.clear()
            await repository.save_override(workspace, mode, by=BY, budget=BUDGET)
            # On its own connection: a probe has another one, and runs when an answer is late.
            (writer,) = {connection for connection, said in trips if b"BEGIN" in said}
            assert [connection for connection, _ in trips].count(writer) == expected


@asynccontextmanager
async def relayed(url: str) -> AsyncIterator[tuple[str, list[tuple[int, bytes]]]]:
    """The same database through a Unix socket that notes what turns from answer to question, and on which connection."""
    given = psycopg.conninfo.conninfo_to_dict(url)
    port = given.get("port", "5432")
    folder = Path(tempfile.mkdtemp(prefix="billing-relay-"))
    trips: list[tuple[int, bytes]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: str, state: dict[str, str]) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if who == "client" and state["last"] != "client":
                    trips.append((id(state), data))
                state["last"] = who
                writer.write(data)
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(f"{given['host']}/.s.PGSQL.{port}")
        state = {"last": ""}
        await asyncio.gather(pump(reader, server_writer, "client", state), pump(server_reader, writer, "server", state))

    relays: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.add(asyncio.ensure_future(relay(reader, writer)))

    server = await asyncio.start_unix_server(accept, folder / f".s.PGSQL.{port}")
    try:
        yield make_conninfo(url, host=str(folder)), trips
    finally:
        server.close()
        await asyncio.wait(relays, timeout=10)
        shutil.rmtree(folder)


async def test_a_change_that_is_rolled_back_was_never_made(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner)
    with owner.transaction(force_rollback=True):
        owner.execute("UPDATE workspaces SET llm_billing_mode = 'byok' WHERE id = %s", [workspace])

    assert await log_of(repository, workspace) == []


async def test_an_etag_from_before_a_change_that_no_trigger_saw_is_stale(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "byok")
    etags = [(await repository.load_record(workspace, budget=BUDGET)).etag]
    owner.execute("SET session_replication_role = replica")
    for mode in ("disabled", None):
        owner.execute("UPDATE workspaces SET llm_billing_mode = %s WHERE id = %s", [mode, workspace])
        etags.append((await repository.load_record(workspace, budget=BUDGET)).etag)

    assert len(set(etags)) == 3
    for etag in etags[:2]:
        change = await repository.save_override(workspace, BillingMode.BYOK, by=BY, etag=etag, budget=BUDGET)
        assert change.stale
    change = await repository.save_override(workspace, BillingMode.BYOK, by=BY, etag=etags[2], budget=BUDGET)
    assert change.current.etag == str(change.current.change_id)


async def test_a_mode_older_than_the_log_has_another_etag_than_one_that_was_never_set(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner)
    never = (await repository.load_record(workspace, budget=BUDGET)).etag
    owner.execute("UPDATE workspaces SET llm_billing_mode = 'byok' WHERE id = %s", [workspace])
    for _ in range(4):
        migrations.down(database_url)
    migrations.up(database_url)
    migrations.run_script(database_url, migrations.grants())
    change = await repository.save_override(workspace, BillingMode.DISABLED, by=BY, etag=never, budget=BUDGET)

    assert change.stale


# Who is believed


async def test_another_role_that_says_who_it_is_is_not_believed(
    repository: PostgresRepository, owner: psycopg.Connection[Any], stranger: str
) -> None:
    workspace = add(owner)
    with psycopg.connect(stranger) as connection:
        connection.execute("SELECT set_config('billing_grpc.principal', 'controlplane', false)")
        connection.execute("SELECT set_config('billing_grpc.reason', 'made up', false)")
        connection.execute("SELECT set_config('billing_grpc.request_id', 'made up', false)")
        connection.execute("SELECT set_config('billing_grpc.actor', 'made up', false)")
        connection.execute("UPDATE workspaces SET llm_billing_mode = 'byok' WHERE id = %s", [workspace])

    (recorded,) = await log_of(repository, workspace)
    assert (recorded.principal, recorded.reason, recorded.request_id, recorded.actor) == ("", "", "", "")


async def test_a_login_role_that_was_granted_the_services_role_is_believed(
    owner: psycopg.Connection[Any], database_url: str, stranger: str
) -> None:
    workspace = add(owner)
    name = psycopg.conninfo.conninfo_to_dict(stranger)["user"]
    grant = sql.SQL("GRANT {} TO {}").format(sql.Identifier(migrations.SERVICE_ROLE), sql.Identifier(str(name)))
    owner.execute(grant)
    async with PostgresRepository.opened(make_conninfo(database_url, user=str(name))) as repository:
        await repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)
        (recorded,) = await log_of(repository, workspace)
    assert (recorded.principal, recorded.database_user) == (BY.principal, name)


async def test_what_one_write_announced_is_not_told_of_the_next(
    service_url: str, repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner)
    async with PostgresRepository.opened(service_url, size=1) as alone:
        await alone.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)
        await alone.save_override(workspace, None, by=ChangeNote("somebody else"), budget=BUDGET)

    recorded = await log_of(repository, workspace)
    assert [(each.principal, each.reason, each.request_id) for each in recorded] == [
        (BY.principal, BY.reason, BY.request_id),
        ("somebody else", "", ""),
    ]


async def test_without_the_services_role_every_update_goes_on_working(empty_database_url: str) -> None:
    migrations.up(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        renamed = f"away_{uuid.uuid4().hex}"
        workspace = add(owner)
        with owner.transaction(force_rollback=True):
            owner.execute(
                sql.SQL("ALTER ROLE {} RENAME TO {}").format(
                    sql.Identifier(migrations.SERVICE_ROLE), sql.Identifier(renamed)
                )
            )
            owner.execute("SELECT set_config('billing_grpc.principal', 'made up', true)")
            owner.execute("UPDATE workspaces SET llm_billing_mode = 'byok' WHERE id = %s", [workspace])
            found = owner.execute("SELECT principal FROM workspace_billing_mode_changes").fetchall()
        assert found == [("",)]


async def test_whoever_created_the_services_role_is_not_thereby_the_service(
    owner: psycopg.Connection[Any], repository: PostgresRepository, database_url: str, stranger: str
) -> None:
    workspace = add(owner)
    name = str(psycopg.conninfo.conninfo_to_dict(stranger)["user"])
    grant = "GRANT {} TO {} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE"
    owner.execute(sql.SQL(grant).format(sql.Identifier(migrations.SERVICE_ROLE), sql.Identifier(name)))
    with psycopg.connect(make_conninfo(database_url, user=name), autocommit=True) as connection:
        connection.execute("SELECT set_config('billing_grpc.principal', 'made up', false)")
        connection.execute("UPDATE workspaces SET llm_billing_mode = 'byok' WHERE id = %s", [workspace])

    (recorded,) = await log_of(repository, workspace)
    assert (recorded.principal, recorded.database_user) == ("", name)


def test_changes_are_recorded_also_where_another_role_migrates_than_before(
    owner: psycopg.Connection[Any], database_url: str, stranger: str
) -> None:
    """The function that records runs as its own owner."""
    first = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(stranger)["user"]))
    migrations.down(database_url)
    migrations.down(database_url)
    owner.execute(sql.SQL("ALTER TABLE workspace_billing_mode_changes OWNER TO {}").format(first))
    owner.execute(sql.SQL("ALTER FUNCTION record_workspace_billing_mode_change() OWNER TO {}").format(first))
    # As on a server that gives functions away to nobody.
    owner.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    migrations.up(database_url)
    add(owner, "byok")
    found = owner.execute("SELECT new_override FROM workspace_billing_mode_changes").fetchall()
    owner.execute("ALTER FUNCTION record_workspace_billing_mode_change() OWNER TO CURRENT_USER")
    owner.execute("ALTER TABLE workspace_billing_mode_changes OWNER TO CURRENT_USER")
    assert found == [("byok",)]


def test_default_privileges_do_not_give_the_log_away(empty_database_url: str, stranger: str) -> None:
    name = str(psycopg.conninfo.conninfo_to_dict(stranger)["user"])
    role = sql.Identifier(name)
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        for grant in (
            sql.SQL("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO {}"),
            sql.SQL("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO {}"),
            sql.SQL("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO {}"),
        ):
            owner.execute(grant.format(role))
        owner.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(role))
        migrations.up(empty_database_url)
        with psycopg.connect(make_conninfo(empty_database_url, user=name), autocommit=True) as connection:
            for attempt in (
                FORBIDDEN["a row of the log"],
                FORBIDDEN["deleting from the log"],
                "SELECT record_org_default_change('byok', 'made up', 'file')",
                "CREATE TABLE mine (id uuid, llm_billing_mode text)",
                ATTACH_TO_MINE,
            ):
                if attempt.startswith("CREATE TABLE"):
                    connection.execute(attempt.encode())
                    continue
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(attempt.encode())
        owner.execute(sql.SQL("DROP OWNED BY {}").format(role))


ATTACH_TO_MINE: Final = (
    "CREATE TRIGGER mine AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION record_workspace_billing_mode_change()"
)
FORGED_ROLES: Final = (
    "CREATE TEMP TABLE pg_roles AS"
    " SELECT oid, 'billing_grpc'::name AS rolname FROM pg_catalog.pg_roles WHERE rolname = current_user"
)
FORBIDDEN: Final = {
    "another column": "UPDATE workspaces SET name = 'x'",
    "the id": "UPDATE workspaces SET id = gen_random_uuid()",
    "a new workspace": "INSERT INTO workspaces (id) VALUES (gen_random_uuid())",
    "deleting a workspace": "DELETE FROM workspaces",
    "emptying the table": "TRUNCATE workspaces",
    "a row of the log": (
        "INSERT INTO workspace_billing_mode_changes (workspace_id, change_time, principal, database_user, reason,"
        " request_id) VALUES (gen_random_uuid(), now(), 'x', 'x', 'x', 'x')"
    ),
    "rewriting the log": "UPDATE workspace_billing_mode_changes SET principal = 'x'",
    "deleting from the log": "DELETE FROM workspace_billing_mode_changes",
    "emptying the log": "TRUNCATE workspace_billing_mode_changes",
    "a table": "CREATE TABLE mine (id int)",
    "the trigger function on its own": "SELECT record_workspace_billing_mode_change()",
    "the trigger on a table of its own": (
        "CREATE TEMP TABLE workspaces_of_mine (id uuid, llm_billing_mode text);"
        "CREATE TRIGGER mine AFTER INSERT ON workspaces_of_mine FOR EACH ROW"
        " EXECUTE FUNCTION record_workspace_billing_mode_change()"
    ),
    "switching the trigger off": "ALTER TABLE workspaces DISABLE TRIGGER ALL",
    "going round the trigger": "SET session_replication_role = replica",
    "dropping the trigger": "DROP TRIGGER workspace_billing_mode_updated ON workspaces",
    "changing the function": "ALTER FUNCTION record_workspace_billing_mode_change() OWNER TO billing_grpc",
    "being somebody else": "SET SESSION AUTHORIZATION billing",
    "a role": "CREATE ROLE mine",
}


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN)
def test_the_services_role_can_do_nothing_else(statement: str, service_url: str) -> None:
    with psycopg.connect(service_url) as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_a_stranger_cannot_write_into_the_log_through_a_table_of_its_own(stranger: str) -> None:
    trigger = (
        b"CREATE TRIGGER forged AFTER INSERT ON own_workspaces FOR EACH ROW"
        b" EXECUTE FUNCTION record_workspace_billing_mode_change()"
    )
    with psycopg.connect(stranger) as connection:
        connection.execute("CREATE TABLE own_workspaces (id uuid, llm_billing_mode text)")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(trigger)


async def test_functions_and_tables_of_a_strangers_own_are_not_used_by_the_trigger(
    repository: PostgresRepository, owner: psycopg.Connection[Any], stranger: str
) -> None:
    workspace = add(owner)
    with psycopg.connect(stranger, autocommit=True) as connection:
        user = connection.info.user
        owner.execute(sql.SQL("CREATE SCHEMA evil AUTHORIZATION {}").format(sql.Identifier(user)))
        for statement in (
            "CREATE FUNCTION evil.pg_has_role(name, oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
            "CREATE TABLE evil.workspace_billing_mode_changes (stolen text)",
            "SET search_path = evil, pg_catalog, public",
            FORGED_ROLES,
            "GRANT SELECT ON pg_temp.pg_roles TO PUBLIC",
            "SELECT set_config('billing_grpc.principal', 'made up', false)",
        ):
            connection.execute(statement.encode())
        connection.execute("UPDATE public.workspaces SET llm_billing_mode = 'byok' WHERE id = %s", [workspace])

    (recorded,) = await log_of(repository, workspace)
    assert (recorded.principal, recorded.database_user) == ("", user)


# Concurrency


async def test_fifty_writers_with_etags_have_one_winner_a_round_and_a_log_without_gaps(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner)
    for turn in range(6):
        etag = (await repository.load_record(workspace, budget=BUDGET)).etag
        writers = [ChangeNote(f"writer-{number}", f"round {turn}") for number in range(50)]
        # All of them want something else than what is stored, and not all the same.
        wanted = [mode for mode in MODES if (mode and mode.value) != (await stored(repository, workspace))]
        changes = await asyncio.gather(
            *(
                repository.save_override(workspace, mode, by=by, etag=etag, budget=BUDGET)
                for by, mode in zip(writers, itertools.cycle(wanted), strict=False)
            )
        )
        winners = [change for change in changes if not change.stale]
        assert len(winners) == 1
        assert winners[0].previous.etag == etag
        assert all(change.current == winners[0].current for change in changes)

    recorded = await log_of(repository, workspace)
    assert [each.reason for each in recorded] == [f"round {turn}" for turn in range(6)]
    assert_chain(recorded, None)


async def test_writers_without_etags_leave_a_chain_in_the_order_of_commit(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner)
    modes = [MODES[number % 4] for number in range(60)]
    changes = await asyncio.gather(
        *(
            repository.save_override(workspace, mode, by=ChangeNote(f"w{number}", str(number)), budget=BUDGET)
            for number, mode in enumerate(modes)
        ),
        *(asyncio.to_thread(direct_update, owner.info.dsn, workspace, mode) for mode in ("byok", None, "disabled") * 5),
    )
    recorded = await log_of(repository, workspace)

    assert_chain(recorded, None)
    stored = await repository.load_override(workspace, budget=BUDGET)
    assert recorded[-1].new_override == stored.text
    # Each answer is the state that its own write left, not one that somebody else's did.
    by_id = {each.change_id: each for each in recorded}
    for number, change in enumerate(change for change in changes if change is not None):
        if change.current.change_id != change.previous.change_id:
            own = by_id[change.current.change_id]
            assert own.reason == str(number)
            assert StoredOverride(own.previous_override) == change.previous.override


def direct_update(dsn: str, workspace: str, mode: str | None) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("UPDATE workspaces SET llm_billing_mode = %s WHERE id = %s", [mode, workspace])


def assert_chain(recorded: list[Change[int]], first: str | None) -> None:
    """Every entry begins where the one before it ended, and time goes forward."""
    assert [each.previous_override for each in recorded] == [first, *(each.new_override for each in recorded[:-1])]
    assert all(each.previous_override != each.new_override for each in recorded)
    assert [each.change_time for each in recorded] == sorted(each.change_time for each in recorded)


async def test_a_writer_that_is_killed_before_it_commits_leaves_nothing(
    repository: PostgresRepository, owner: psycopg.Connection[Any], service_url: str
) -> None:
    workspace = add(owner, "byok")
    with psycopg.connect(service_url) as writer:
        writer.execute("SELECT set_config('billing_grpc.principal', 'killed', true)")
        writer.execute("UPDATE workspaces SET llm_billing_mode = 'disabled' WHERE id = %s", [workspace])
        owner.execute("SELECT pg_terminate_backend(%s)", [writer.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            writer.execute("SELECT 1")

    assert (await repository.load_override(workspace, budget=BUDGET)).text == "byok"
    assert len(await log_of(repository, workspace)) == 1
    await repository.save_override(workspace, BillingMode.DISABLED, by=BY, budget=BUDGET)


async def test_a_caller_that_gives_up_leaves_the_old_state_or_the_new_one_with_its_entry(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspaces = [add(owner) for _ in range(40)]
    for number, workspace in enumerate(workspaces):
        save = repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)
        call = asyncio.create_task(save)
        await asyncio.sleep(number * 0.0001)
        call.cancel()
    await asyncio.sleep(0.5)

    for workspace in workspaces:
        stored = (await repository.load_override(workspace, budget=BUDGET)).text
        assert [each.new_override for each in await log_of(repository, workspace)] == (
            [] if stored is None else [stored]
        )


async def test_a_write_that_ran_out_of_time_may_be_repeated(
    service_url: str, repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner)
    async with PostgresRepository.opened(service_url, longest_budget=0.5) as hasty:
        with psycopg.connect(database_url) as holder:
            holder.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", [workspace])
            with pytest.raises(DatabaseTimeout):
                await hasty.save_override(workspace, BillingMode.BYOK, by=BY, budget=0.5)
        change = await hasty.save_override(workspace, BillingMode.BYOK, by=BY, budget=0.5)

    assert change.current.override.text == "byok"
    assert len(await log_of(repository, workspace)) == 1


async def test_a_write_that_its_caller_gave_up_does_not_happen_later(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner)
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", [workspace])
        with pytest.raises(DatabaseTimeout):
            await repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=0.3)
        await asyncio.sleep(0.3)
    await asyncio.sleep(0.2)

    assert (await repository.load_override(workspace, budget=BUDGET)).text is None


async def test_a_write_that_first_waited_for_a_connection_does_not_happen_later_either(
    service_url: str, repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace, other = add(owner), add(owner)
    async with PostgresRepository.opened(service_url, size=1) as narrow:
        with psycopg.connect(database_url) as holder:
            holder.execute("SELECT FROM workspaces WHERE id = ANY(%s) FOR UPDATE", [[workspace, other]])
            first = asyncio.create_task(narrow.save_override(other, BillingMode.BYOK, by=BY, budget=0.7))
            await asyncio.sleep(0.05)
            with pytest.raises(DatabaseTimeout):
                await narrow.save_override(workspace, BillingMode.BYOK, by=BY, budget=0.9)
            with pytest.raises(DatabaseTimeout):
                await first
        await asyncio.sleep(0.3)

    assert await stored(repository, workspace) is None
    assert await stored(repository, other) is None


async def test_what_is_checked_only_at_the_commit_rolls_back_and_keeps_the_connection(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner)
    owner.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    owner.execute(
        "CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON workspaces DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    with capture_logs() as logs, pytest.raises(WriteNotApplied):
        await repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)

    assert [line["text"].split()[0] for line in logs if line["event"] == "storage failed"] == ["no"]
    assert await stored(repository, workspace) is None
    assert await log_of(repository, workspace) == []


# Pages


async def test_pages_are_disjoint_and_complete_while_new_changes_arrive(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace, other = add(owner), add(owner)
    for number in range(25):
        for each in (workspace, other):
            await repository.save_override(each, MODES[number % 2], by=ChangeNote("a", f"{number}"), budget=BUDGET)
    seen: list[str] = []
    at = LogPosition()
    while page := (await repository.list_changes(workspace, position=at, limit=4, budget=BUDGET)).changes:
        seen += [each.reason for each in page]
        at = LogPosition(page[-1].change_id)
        await repository.save_override(workspace, MODES[len(seen) % 3], by=ChangeNote("a", "later"), budget=BUDGET)

    assert seen == [str(number) for number in reversed(range(25))]
    every = (await repository.list_changes(None, position=LogPosition(), limit=1000, budget=BUDGET)).changes
    assert [each.change_id for each in every] == sorted((each.change_id for each in every), reverse=True)
    assert {each.workspace_id for each in every} == {workspace, other}


async def test_administration_needs_the_log_and_decisions_do_not(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner, "byok")
    for _ in range(4):
        migrations.down(database_url)

    assert (await repository.load_override(workspace, budget=BUDGET)).text == "byok"
    with pytest.raises(StorageError) as failed:
        await repository.load_record(workspace, budget=BUDGET)
    assert failed.value.reason == "SCHEMA_NOT_READY"
