"""The trail of the org default: each change once for all servers of a database, and no server waits for it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
import pytest
from psycopg import errors
from structlog.testing import capture_logs

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc.client import BillingClient
from billing_grpc.model import BillingMode, Change, ChangeKind
from billing_grpc.page_token import LogPosition
from billing_grpc.server import org_default_trail
from billing_grpc.server.org_default_trail import record_org_defaults
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.storage.repository import Repository
from billing_grpc.testing import InMemoryRepository, running_server
from tests.support.servers import serving
from tests.support.workspaces import add_workspace, as_service

BUDGET: Final = 5.0


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The owner of the tables, in autocommit mode."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(params=["postgres", "in_memory"])
async def repository(request: pytest.FixtureRequest) -> AsyncIterator[Repository]:
    if request.param == "in_memory":
        yield InMemoryRepository()
        return
    url = as_service(request.getfixturevalue("database_url"))
    async with PostgresRepository.opened(url, longest_budget=BUDGET) as opened:
        yield opened


async def trail(repository: Repository, kind: ChangeKind | None = None) -> list[Change[int]]:
    """Oldest first."""
    page = await repository.list_changes(None, position=LogPosition(), limit=100, budget=BUDGET, kind=kind)
    return list(reversed(page.changes))


async def record(repository: Repository, mode: BillingMode | None, server: str = "a") -> bool:
    return await repository.record_org_default(mode, server=server, origin="file", budget=BUDGET)


async def test_a_change_is_recorded_once_for_all_servers(repository: Repository) -> None:
    assert not await record(repository, None)
    for mode in (BillingMode.BYOK, None, BillingMode.DISABLED):
        added = await asyncio.gather(*(record(repository, mode, f"server {number}") for number in range(8)))
        assert sum(added) == 1
    found = await trail(repository)
    assert [(each.previous_override, each.new_override) for each in found] == [
        (None, "byok"),
        ("byok", None),
        (None, "disabled"),
    ]
    assert {(each.kind, each.workspace_id, each.origin) for each in found} == {(ChangeKind.ORG_DEFAULT, "", "file")}
    assert all(each.server.startswith("server ") for each in found)


async def test_a_server_waits_for_another_that_records_the_same(database_url: str) -> None:
    url = as_service(database_url)
    async with PostgresRepository.opened(url, longest_budget=BUDGET) as repository:
        with psycopg.connect(url) as first:
            first.execute("SELECT record_org_default_change('byok', 'first', 'file')")
            second = asyncio.create_task(record(repository, BillingMode.BYOK))
            await asyncio.sleep(0.3)
            first.commit()
        assert not await second
        assert [each.server for each in await trail(repository)] == ["first"]


async def test_it_stands_beside_the_changes_of_workspaces_and_can_be_left_out(database_url: str) -> None:
    workspace = add_workspace(database_url, "byok")
    async with (
        PostgresRepository.opened(as_service(database_url), longest_budget=BUDGET) as repository,
        running_server(repository, storage_timeout=BUDGET) as address,
        BillingClient(address, timeout=30) as client,
    ):
        await record(repository, BillingMode.BYOK)

        async def kinds(**arguments: Any) -> list[ChangeKind]:
            return [each.kind async for each in client.changes(page_size=1, **arguments)]

        assert await kinds() == [ChangeKind.ORG_DEFAULT, ChangeKind.WORKSPACE]
        assert await kinds(kind=ChangeKind.WORKSPACE) == [ChangeKind.WORKSPACE]
        assert await kinds(kind=ChangeKind.ORG_DEFAULT) == [ChangeKind.ORG_DEFAULT]
        assert await kinds(workspace_id=workspace) == [ChangeKind.WORKSPACE]
        follower = client.changes(kind=ChangeKind.ORG_DEFAULT, follow=0.01)
        assert (await anext(follower)).new_override == "byok"
        await record(repository, None)
        assert (await anext(follower)).new_override is None
        await follower.aclose()


def test_the_services_role_can_add_nothing_else(database_url: str) -> None:
    with psycopg.connect(as_service(database_url), autocommit=True) as service:
        with pytest.raises(errors.InsufficientPrivilege):
            service.execute("INSERT INTO workspace_billing_mode_changes (workspace_id) VALUES (NULL)")
        with pytest.raises(errors.InvalidParameterValue):
            service.execute("SELECT record_org_default_change('free', 'a', 'file')")


@asynccontextmanager
async def recording(repository: Repository, published: list[str | None]) -> AsyncIterator[None]:
    work = record_org_defaults(repository, lambda: published[0], server="a", origin="environment", budget=BUDGET)
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(repository: Repository, *modes: str | None) -> None:
    async with asyncio.timeout(10):
        while [each.new_override for each in await trail(repository, ChangeKind.ORG_DEFAULT)] != list(modes):
            await asyncio.sleep(0.02)


async def test_a_server_records_what_it_uses_and_tries_again_until_the_migration_is_there(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(org_default_trail, "_LOOK_EVERY", 0.02)
    monkeypatch.setattr(org_default_trail, "_RETRY_AFTER", 0.05)
    migrations.down(database_url)
    published: list[str | None] = [" BYOK "]
    async with PostgresRepository.opened(as_service(database_url), longest_budget=BUDGET) as repository:
        with capture_logs() as lines:
            async with recording(repository, published):
                await asyncio.sleep(0.5)
                migrations.up(database_url)
                await until(repository, "byok")
                published[0] = "garbage"
                await until(repository, "byok", None)
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == [
        "org default not recorded, trying again"
    ]


def test_a_server_records_its_default_and_serves_where_that_is_not_possible(
    owner: psycopg.Connection[Any], database_url: str
) -> None:
    settings = {"DATABASE_URL": as_service(database_url), "MOLECULE_LLM_BILLING_MODE": "byok"}
    owner.execute("REVOKE EXECUTE ON FUNCTION record_org_default_change FROM billing_grpc")
    with serving() as serve:
        server = serve(settings=settings)
        server.logged("org default not recorded")
        assert server.resolve(add_workspace(database_url)).resolved_mode == pb.BILLING_MODE_BYOK
        server.stop()
        owner.execute("GRANT EXECUTE ON FUNCTION record_org_default_change TO billing_grpc")
        serve(settings=settings).logged("org default recorded", org_default="byok", origin="environment")
