"""A watched repository answers as the one it watches, and tells how long that took and how it ended."""

import asyncio
import uuid
from typing import Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from billing_grpc.errors import STORAGE_ERRORS, StorageError
from billing_grpc.model import BillingMode, ChangeNote, StoredOverride
from billing_grpc.page_token import LogPosition
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.observed_repository import observed
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.testing import InMemoryRepository

WORKSPACE: Final = "7f1fc6a0-0000-4000-8000-000000000001"
BY: Final = ChangeNote("somebody", "", "")


def operations(metrics: Metrics) -> dict[tuple[str, str], float]:
    """How many operations ended how."""
    return {
        (sample.labels["operation"], sample.labels["outcome"]): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "billing_grpc_storage_seconds_count"
    }


async def test_every_operation_is_passed_on_and_counted(service_url: str, database_url: str) -> None:
    workspace = str(uuid.uuid4())
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, 'byok')", [workspace])
    metrics = Metrics()
    async with PostgresRepository.opened(service_url) as postgres:
        watched = observed(postgres, metrics)
        assert await watched.load_override(workspace, budget=5) == StoredOverride("byok")
        assert await watched.load_overrides([workspace], budget=5) == {workspace: StoredOverride("byok")}
        change = await watched.save_override(workspace, BillingMode.DISABLED, by=BY, etag="", budget=5)
        assert change.current.override == StoredOverride("disabled")
        assert await watched.load_record(workspace, budget=5) == change.current
        assert [
            each.new_override
            for each in (await watched.list_changes(workspace, position=LogPosition(), limit=1, budget=5)).changes
        ] == ["disabled"]
        await watched.check_administration(budget=5)

    assert operations(metrics) == {
        (operation, "ok"): 1
        for operation in (
            *("load_override", "load_overrides", "save_override", "load_record", "list_changes"),
            "check_administration",
        )
    }


@pytest.mark.parametrize("reason", STORAGE_ERRORS)
async def test_an_operation_that_fails_is_counted_by_its_reason(reason: str) -> None:
    repository, metrics = InMemoryRepository({WORKSPACE: "byok"}), Metrics()
    watched = observed(repository, metrics)
    repository.failure = STORAGE_ERRORS[reason]()
    with pytest.raises(StorageError) as raised:
        await watched.load_override(WORKSPACE, budget=1)

    assert raised.value is repository.failure
    assert operations(metrics) == {("load_override", reason): 1}


async def test_a_caller_that_goes_away_is_counted_as_cancelled() -> None:
    repository, metrics = InMemoryRepository({WORKSPACE: "byok"}), Metrics()
    watched = observed(repository, metrics)
    await watched.load_override(WORKSPACE, budget=1)
    repository.delay = 5.0
    asking = asyncio.ensure_future(watched.load_override(WORKSPACE, budget=10))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert operations(metrics) == {("load_override", "ok"): 1, ("load_override", "cancelled"): 1}


async def test_the_pool_tells_how_many_connections_work_and_who_waits(service_url: str, database_url: str) -> None:
    workspace = str(uuid.uuid4())
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO workspaces (id) VALUES (%s)", [workspace])
    async with PostgresRepository.opened(service_url, longest_budget=20.0, size=2) as postgres:
        async with asyncio.timeout(20):
            while postgres.pool_stats().idle != 2:
                await asyncio.sleep(0.01)
        with psycopg.connect(make_conninfo(database_url)) as other:
            other.execute("LOCK TABLE workspaces")
            asking = [asyncio.ensure_future(postgres.load_overrides([workspace], budget=15)) for _ in range(5)]
            async with asyncio.timeout(10):
                while (stats := postgres.pool_stats()).waiting != 3:
                    await asyncio.sleep(0.01)
            assert (stats.size, stats.idle, stats.in_use) == (2, 0, 2)
        await asyncio.gather(*asking)
        assert postgres.pool_stats().waiting == 0
