"""The change log as who follows it sees it: every change once, however late and out of order it commits; and who acted."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import grpc
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from billing_grpc import page_token
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.client import BillingClient
from billing_grpc.errors import AnswerInvalid, InvalidArgument
from billing_grpc.model import BillingMode, Change
from billing_grpc.page_token import LogPosition
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.testing import InMemoryRepository, running_server
from tests.support.writes import add

BUDGET: Final = 10.0
WRITERS: Final = 20
CHANGES: Final = 10
READERS: Final = 3


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The owner of the tables, in autocommit mode."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[str]:
    as_service = make_conninfo(url, user=migrations.SERVICE_ROLE)
    async with (
        PostgresRepository.opened(as_service, longest_budget=BUDGET) as repository,
        running_server(repository, storage_timeout=BUDGET) as address,
    ):
        yield address


def write_late(url: str, seed: int) -> None:
    """Make changes, some of them together, and let each commit wait for a time of its own."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    with psycopg.connect(url) as connection:
        for _ in range(CHANGES // 2):
            add(connection, "byok")
            threading.Event().wait(dice.random() / 20)
            with connection.transaction():  # a savepoint, whose number is not the transaction's
                add(connection, "disabled")
            threading.Event().wait(dice.random() / 20)
            connection.commit()


async def test_three_followers_see_every_change_of_twenty_late_writers_once(database_url: str) -> None:
    async def follow(address: str, page_size: int, seen: Counter[str]) -> None:
        async with BillingClient(address, timeout=30) as client:
            async for each in client.changes(page_size=page_size, follow=0.01):
                seen[each.change_id] += 1

    async with serving(database_url) as address:
        seen: list[Counter[str]] = [Counter() for _ in range(READERS)]
        followers = [asyncio.create_task(follow(address, 1 + 3 * n, each)) for n, each in enumerate(seen)]
        await asyncio.gather(*(asyncio.to_thread(write_late, database_url, seed) for seed in range(WRITERS)))
        async with asyncio.timeout(30):
            while any(len(each) < WRITERS * CHANGES for each in seen):
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)  # for a change that came twice
        for each in followers:
            each.cancel()
            with suppress(asyncio.CancelledError):
                await each
    assert {len(each) for each in seen} == {WRITERS * CHANGES}
    assert set.union(*(set(each.values()) for each in seen)) == {1}


async def test_pages_show_what_was_committed_at_the_first_and_following_what_came_since(
    owner: psycopg.Connection[Any], database_url: str
) -> None:
    async with serving(database_url) as address, grpc.aio.insecure_channel(address) as channel:
        stub: Any = service_grpc.BillingModeServiceStub(channel)

        async def page(token: str = "", size: int = 1) -> Any:
            request = service_pb.ListBillingModeChangesRequest(page_size=size, page_token=token)
            return await stub.ListBillingModeChanges(request, timeout=10)

        with psycopg.connect(database_url) as late:
            overtaken = add(late, "byok")  # recorded first, committed last
            first, second = add(owner, "byok"), add(owner, "byok")
            one = await page()
            late.commit()
        two = await page(one.next_page_token)
        assert [each.workspace_id for each in [*one.changes, *two.changes]] == [second, first]
        assert (two.next_page_token, one.follow_token) == ("", "")
        three = await page(two.follow_token)
        assert [each.workspace_id for each in three.changes] == [overtaken]
        four = await page(three.follow_token)
        assert (list(four.changes), four.next_page_token) == ([], "")
        newest = add(owner, "byok")
        assert [each.workspace_id for each in (await page(four.follow_token)).changes] == [newest]
        assert len((await page(size=10)).changes) == 4


async def test_before_the_migration_changes_are_listed_and_cannot_be_followed(
    owner: psycopg.Connection[Any], database_url: str
) -> None:
    add(owner, "byok")
    async with serving(database_url) as address, BillingClient(address, timeout=30) as client:
        for _ in range(2):
            migrations.down(database_url)
        workspace = add(owner)
        await client.set(workspace, BillingMode.BYOK, actor="alice")
        found = [each async for each in client.changes(page_size=1)]
        assert [each.actor for each in found] == ["", ""]
        with pytest.raises(AnswerInvalid):
            async for _ in client.changes(follow=0):
                pass
        migrations.up(database_url)
        await client.inherit(workspace, actor="bob")
        found = [each async for each in client.changes(page_size=1)]
        assert [(each.principal, each.actor) for each in found] == [("local", "bob"), ("local", ""), ("", "")]


async def test_entries_restored_from_another_database_are_listed_and_are_no_news(
    owner: psycopg.Connection[Any], database_url: str
) -> None:
    add(owner, "byok")
    owner.execute("UPDATE workspace_billing_mode_changes SET transaction_id = '9000000000000000000'")
    async with serving(database_url) as address, BillingClient(address, timeout=30) as client:
        follower = client.changes(page_size=1, follow=0.01)
        assert (await anext(follower)).new_override == "byok"
        workspace = add(owner, "disabled")
        assert (await anext(follower)).workspace_id == workspace
        await follower.aclose()


async def test_a_token_of_another_database_is_refused(database_url: str) -> None:
    of = page_token.list_name("changes", None, 0)
    ahead = page_token.encode(of, LogPosition(since="9000000000000000000:9000000000000000000:"))
    async with serving(database_url) as address, grpc.aio.insecure_channel(address) as channel:
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        request = service_pb.ListBillingModeChangesRequest(page_token=ahead)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListBillingModeChanges(request, timeout=10)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def recorded_with(*actors: str) -> list[Change[str]]:
    """What a change is recorded with if the call sends these values of `x-billing-actor`."""
    workspace = "7f1fc6a0-0000-4000-8000-000000000001"
    async with running_server(InMemoryRepository({workspace: None})) as address, BillingClient(address) as client:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = service_grpc.BillingModeServiceStub(channel)
            request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace, mode=pb.BILLING_MODE_BYOK)
            metadata = [("x-billing-actor", each) for each in actors]
            await stub.SetWorkspaceBillingMode(request, timeout=10, metadata=metadata)
        return [each async for each in client.changes()]


async def test_a_change_names_the_person_behind_the_caller() -> None:
    (change,) = await recorded_with("Alice <alice@example.com>")
    assert (change.principal, change.actor) == ("local", "Alice <alice@example.com>")
    (change,) = await recorded_with()
    assert change.actor == ""


@pytest.mark.parametrize("actors", [("x" * 129,), ("x" * 200,), ("a", "b")], ids=["129", "200", "two"])
async def test_an_actor_that_cannot_be_recorded_is_refused(actors: tuple[str, ...]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await recorded_with(*actors)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "x-billing-actor" in (refused.value.details() or "")


@pytest.mark.parametrize("actor", ["a\nb", "\u0431", "x" * 129])
async def test_a_client_sends_no_actor_that_would_be_refused(actor: str) -> None:
    async with BillingClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidArgument):
            await client.set("7f1fc6a0-0000-4000-8000-000000000001", BillingMode.BYOK, actor=actor)
