"""A connection keeps the plan of a read, and the read sees every change that a new session would see."""

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from billing_grpc.errors import DatabaseDenied, DatabaseStale, SchemaNotReady, StorageError
from billing_grpc.model import StoredOverride
from billing_grpc.storage.postgres import PostgresRepository, exchange
from billing_grpc.storage.postgres.connection import Connection
from billing_grpc.storage.postgres.overrides import load_overrides
from billing_grpc.storage.postgres.standing import StaleSession

BUDGET: Final = 5.0
WORKSPACE: Final = str(uuid.uuid4())
UNTIL_THE_PLAN_IS_KEPT: Final = 8
"""Postgres makes a new plan for the first five executions of a prepared statement."""


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The tables' owner, in autocommit mode; one workspace is on BYOK."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, 'byok')", [WORKSPACE])
        connection.execute("CREATE SCHEMA tenant")
        connection.execute("GRANT USAGE ON SCHEMA tenant TO PUBLIC")
        yield connection


@pytest.fixture
def login(owner: psycopg.Connection[Any]) -> Iterator[str]:
    """A login of the service, so that other tests do not see what happens to the role."""
    name = f"login_{uuid.uuid4().hex}"
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE billing_grpc").format(sql.Identifier(name)))
    yield name
    owner.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
    owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
async def repository(owner: psycopg.Connection[Any], service_url: str) -> AsyncIterator[PostgresRepository]:
    """A repository with one connection, which keeps the plan."""
    del owner
    url = make_conninfo(service_url, options="-c search_path=tenant,public")
    async with PostgresRepository.opened(url, size=1) as repository:
        for _ in range(UNTIL_THE_PLAN_IS_KEPT):
            assert await override(repository) == StoredOverride("byok")
        yield repository


@pytest.fixture
async def connection(owner: psycopg.Connection[Any], service_url: str) -> AsyncIterator[Connection]:
    """One connection, which keeps the plan."""
    del owner
    opened = Connection.connect(service_url, autocommit=True, cursor_factory=psycopg.AsyncRawCursor)
    async with await opened as connection:
        await connection.prepare(BUDGET)
        for _ in range(UNTIL_THE_PLAN_IS_KEPT):
            assert await load_overrides(connection, [WORKSPACE]) == {WORKSPACE: StoredOverride("byok")}
        yield connection


def hide_by_another_table(owner: psycopg.Connection[Any]) -> None:
    """Create a table that the service's role finds first; the workspace is `disabled` there."""
    owner.execute("CREATE TABLE tenant.workspaces (id uuid PRIMARY KEY, llm_billing_mode text)")
    owner.execute("INSERT INTO tenant.workspaces VALUES (%s, 'disabled')", [WORKSPACE])
    owner.execute("GRANT SELECT ON tenant.workspaces TO billing_grpc")


async def override(repository: PostgresRepository) -> StoredOverride:
    return await repository.load_override(WORKSPACE, budget=BUDGET)


async def kept(connection: Connection) -> int:
    cursor = await connection.execute("SELECT generic_plans FROM pg_prepared_statements")
    return int((await cursor.fetchall())[0][0])


async def test_the_plan_is_kept(connection: Connection) -> None:
    before = await kept(connection)
    assert before > 0
    await load_overrides(connection, [WORKSPACE])
    assert await kept(connection) == before + 1


async def test_a_plan_is_made_anew_for_a_table_that_has_grown(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "KEPT_SECONDS", 0.0)
    for _ in range(2):
        assert await load_overrides(connection, [WORKSPACE]) == {WORKSPACE: StoredOverride("byok")}
        assert await kept(connection) == 0


async def test_a_table_that_hides_the_old_one_is_read(
    owner: psycopg.Connection[Any], repository: PostgresRepository
) -> None:
    hide_by_another_table(owner)
    for _ in range(2):
        assert await override(repository) == StoredOverride("disabled")
    owner.execute("DROP TABLE tenant.workspaces")
    for _ in range(2):
        assert await override(repository) == StoredOverride("byok")


async def test_a_table_that_hides_one_without_rights_is_read(
    owner: psycopg.Connection[Any], repository: PostgresRepository
) -> None:
    owner.execute("REVOKE SELECT ON workspaces FROM billing_grpc")
    with pytest.raises(DatabaseDenied):
        await override(repository)
    hide_by_another_table(owner)
    assert await override(repository) == StoredOverride("disabled")


async def test_a_table_in_the_place_of_the_old_one_is_read(
    owner: psycopg.Connection[Any], repository: PostgresRepository
) -> None:
    owner.execute("ALTER TABLE workspaces RENAME TO old_workspaces")
    owner.execute("CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode varchar(20))")
    owner.execute("INSERT INTO workspaces VALUES (%s, 'disabled')", [WORKSPACE])
    owner.execute("GRANT SELECT ON workspaces TO billing_grpc")
    assert await override(repository) == StoredOverride("disabled")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("REVOKE SELECT ON workspaces FROM billing_grpc", DatabaseDenied),
        ("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY", DatabaseDenied),
        ("ALTER TABLE workspaces RENAME TO gone", SchemaNotReady),
        ("ALTER TABLE workspaces RENAME llm_billing_mode TO gone", SchemaNotReady),
    ],
)
async def test_a_read_that_is_no_longer_possible_fails(
    owner: psycopg.Connection[Any], repository: PostgresRepository, change: LiteralString, kind: type[StorageError]
) -> None:
    owner.execute(change)
    for _ in range(2):
        with pytest.raises(kind):
            await override(repository)


@pytest.mark.parametrize(
    "remedy",
    ["ALTER ROLE {login} BYPASSRLS", "ALTER ROLE {login} SUPERUSER", "GRANT {owner} TO {login}"],
    ids=["bypass", "superuser", "membership"],
)
@pytest.mark.parametrize("kept_before", [True, False])
async def test_a_role_that_may_see_hidden_rows_now_sees_them(
    owner: psycopg.Connection[Any], service_url: str, login: str, remedy: LiteralString, *, kept_before: bool
) -> None:
    # Postgres does not look at a kept statement again when a role's attributes or groups change.
    async with PostgresRepository.opened(make_conninfo(service_url, user=login), size=1) as repository:
        if kept_before:
            for _ in range(UNTIL_THE_PLAN_IS_KEPT):
                assert await override(repository) == StoredOverride("byok")
        owner.execute("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY")
        for _ in range(UNTIL_THE_PLAN_IS_KEPT):
            with pytest.raises(DatabaseDenied):
                await override(repository)
        names = {"login": sql.Identifier(login), "owner": sql.Identifier(owner.info.user)}
        owner.execute(sql.SQL(remedy).format(**names))
        for _ in range(2):
            assert await override(repository) == StoredOverride("byok")


async def test_a_statement_prepared_without_any_right_answers_once_all_are_granted(
    owner: psycopg.Connection[Any], service_url: str, login: str
) -> None:
    owner.execute("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY")
    owner.execute(sql.SQL("REVOKE billing_grpc FROM {}").format(sql.Identifier(login)))
    async with PostgresRepository.opened(make_conninfo(service_url, user=login), size=1) as repository:
        with pytest.raises(DatabaseDenied):
            await override(repository)
        for grant in (sql.SQL("GRANT billing_grpc TO {}"), sql.SQL("ALTER ROLE {} BYPASSRLS")):
            owner.execute(grant.format(sql.Identifier(login)))
        assert await override(repository) == StoredOverride("byok")


async def test_a_table_that_is_no_longer_durable_is_stale(
    owner: psycopg.Connection[Any], repository: PostgresRepository
) -> None:
    owner.execute("DROP TRIGGER IF EXISTS workspace_billing_mode_log ON workspaces")
    owner.execute("ALTER TABLE workspaces SET UNLOGGED")
    with pytest.raises(DatabaseStale):
        await override(repository)


@pytest.mark.parametrize(
    "change", ["SET default_transaction_read_only = on", "SET default_transaction_isolation = 'repeatable read'"]
)
async def test_a_session_that_may_show_old_values_is_stale(connection: Connection, change: LiteralString) -> None:
    await connection.execute(change)
    with pytest.raises(StaleSession):
        await load_overrides(connection, [WORKSPACE])


async def test_a_statement_that_a_session_lacks_is_a_pooler_and_the_read_still_answers(
    connection: Connection,
) -> None:
    await connection.execute("DEALLOCATE ALL")
    assert await load_overrides(connection, [WORKSPACE]) == {WORKSPACE: StoredOverride("byok")}
    assert not connection.direct
    assert await load_overrides(connection, [WORKSPACE]) == {WORKSPACE: StoredOverride("byok")}
