"""Measure what one resolve costs, and what a caller's own query would. Print ratios of one interleaved run.

Rows with the same base are comparable; a ratio above 1 is slower than its base. Run by `make benchmark`.
"""

import asyncio
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.storage import migrations
from billing_grpc.storage.embedded import EmbeddedPostgres
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.testing import InMemoryRepository, running_server

ROUNDS: Final = 20
CALLS: Final = 200
WORKSPACES: Final = 1000
QUERY: Final = "SELECT llm_billing_mode FROM workspaces WHERE id = %s"
BUDGET: Final = 1.0

Once = Callable[[], Awaitable[Any]]


async def variants(url: str, some_id: str, stack: AsyncExitStack) -> dict[str, tuple[str, Once]]:
    """Return each variant by name: the name of its base, and a function that runs it once."""
    repository = await stack.enter_async_context(PostgresRepository.opened(url))
    pool = await stack.enter_async_context(
        AsyncConnectionPool(url, min_size=8, kwargs={"autocommit": True}, open=False)
    )
    sync_pool = stack.enter_context(ConnectionPool(url, min_size=8, kwargs={"autocommit": True}, open=True))
    threads = stack.enter_context(ThreadPoolExecutor(8))
    bare = await stack.enter_async_context(await psycopg.AsyncConnection.connect(url, autocommit=True))
    address = await stack.enter_async_context(running_server(repository))
    memory_address = await stack.enter_async_context(running_server(InMemoryRepository({some_id: "byok"})))
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
    memory_channel = await stack.enter_async_context(grpc.aio.insecure_channel(memory_address))
    stub: Any = service_grpc.BillingModeServiceStub(channel)
    memory_stub: Any = service_grpc.BillingModeServiceStub(memory_channel)
    health: Any = health_pb2_grpc.HealthStub(channel)
    request = service_pb.ResolveBillingModeRequest(workspace_id=some_id)

    async def select() -> None:
        await (await bare.execute(QUERY, [some_id])).fetchone()

    async def pooled() -> None:
        async with pool.connection() as connection:
            await (await connection.execute(QUERY, [some_id])).fetchone()

    def in_thread() -> None:
        with sync_pool.connection() as connection:
            connection.execute(QUERY, [some_id]).fetchone()

    async def threaded() -> None:
        await asyncio.get_running_loop().run_in_executor(threads, in_thread)

    return {
        "storage: our bounded pool": (
            "storage: our bounded pool",
            lambda: repository.load_override(some_id, budget=BUDGET),
        ),
        "storage: one bare connection, unbounded": ("storage: our bounded pool", select),
        "storage: AsyncConnectionPool as it comes, unbounded": ("storage: our bounded pool", pooled),
        "storage: ConnectionPool behind 8 threads, unbounded": ("storage: our bounded pool", threaded),
        "call: resolve on Postgres": ("call: resolve on Postgres", lambda: stub.ResolveBillingMode(request, timeout=5)),
        "call: resolve in memory": (
            "call: resolve on Postgres",
            lambda: memory_stub.ResolveBillingMode(request, timeout=5),
        ),
        "call: health check, the floor of gRPC": (
            "call: resolve on Postgres",
            lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=5),
        ),
        "call: the caller's own SELECT through a pool": ("call: resolve on Postgres", pooled),
    }


async def measure(url: str, some_id: str) -> dict[str, tuple[str, float]]:
    """Return each variant's base and the median of its rounds' medians, in seconds, by the variant's name."""
    async with AsyncExitStack() as stack:
        measured = await variants(url, some_id, stack)
        medians: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(ROUNDS):
            for name, (_, once) in measured.items():
                times = []
                for _ in range(CALLS):
                    started = time.perf_counter()
                    await once()
                    times.append(time.perf_counter() - started)
                medians[name].append(statistics.median(times))
        return {name: (base, statistics.median(medians[name])) for name, (base, _) in measured.items()}


def main() -> None:
    """Start a database, measure, and print the table."""
    directory = Path(tempfile.gettempdir()) / f"billing-grpc-benchmark-{uuid.uuid4().hex[:8]}"
    try:
        with EmbeddedPostgres(directory) as postgres:
            migrations.up(postgres.url)
            ids = [str(uuid.uuid4()) for _ in range(WORKSPACES)]
            with psycopg.connect(postgres.url) as connection:
                connection.cursor().executemany("INSERT INTO workspaces (id) VALUES (%s)", [[each] for each in ids])
            results = asyncio.run(measure(postgres.url, ids[0]))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"median of {ROUNDS} x {CALLS} sequential calls, one process\n\n   ratio   median  ")
    for name, (base, seconds) in results.items():
        print(f"{seconds / results[base][1]:8.2f} {seconds * 1000:6.3f} ms  {name}")


if __name__ == "__main__":
    main()
