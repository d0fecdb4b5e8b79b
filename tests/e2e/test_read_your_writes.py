"""A decision never answers with a value from before a write that was acknowledged before the call began."""

import asyncio
import time
from random import Random
from typing import Final

import grpc

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from tests.support.servers import Serve, Server
from tests.support.slow_network import slow_answers
from tests.support.workspaces import add_workspace, as_service

SECONDS: Final = 2.0
WRITERS: Final = 12
READERS: Final = 24
CHANNELS: Final = 8
"""Connections, of which each of two workers gets some."""

LATE: Final = 0.04
"""The most seconds by which an answer of the database is late."""

MODES: Final = (pb.BILLING_MODE_BYOK, pb.BILLING_MODE_PLATFORM_MANAGED, pb.BILLING_MODE_DISABLED)
TIMEOUT: Final = 30


async def test_a_decision_after_a_write_shows_it_whichever_worker_answers(
    serve: Serve, module_database_url: str
) -> None:
    random = Random(1)  # noqa: S311 - it only varies delays; nothing is secret

    async def hold() -> None:
        # So an acknowledged write often overtakes the answer of an older read.
        await asyncio.sleep(LATE * random.random())

    async with slow_answers(as_service(module_database_url), hold) as url:
        settings = {"DATABASE_URL": url, "BILLING_GRPC_WORKERS": "2", "BILLING_GRPC_STORAGE_TIMEOUT": "10"}
        server = await asyncio.to_thread(serve, settings=settings)
        await write_and_read(server, module_database_url)
        await asyncio.to_thread(server.stop)


async def write_and_read(server: Server, database_url: str) -> None:
    workspaces = [add_workspace(database_url, "byok") for _ in range(WRITERS)]
    channels = [
        grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CHANNELS)
    ]
    stubs = [service_grpc.BillingModeServiceStub(channel) for channel in channels]
    until = time.monotonic() + SECONDS

    async def mode(stub: "service_grpc.BillingModeServiceAsyncStub", workspace: str) -> pb.BillingMode:
        request = service_pb.ResolveBillingModeRequest(workspace_id=workspace)
        return (await stub.ResolveBillingMode(request, timeout=TIMEOUT)).resolution.resolved_mode

    async def write_then_read(number: int) -> int:
        rounds = 0
        while time.monotonic() < until:
            wanted = MODES[rounds % len(MODES)]
            request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspaces[number], mode=wanted)
            await stubs[(number + rounds) % CHANNELS].SetWorkspaceBillingMode(request, timeout=TIMEOUT)
            reads = [mode(stubs[(number + rounds + offset) % CHANNELS], workspaces[number]) for offset in range(3)]
            assert await asyncio.gather(*reads) == [wanted] * len(reads)
            rounds += 1
        return rounds

    async def read_all_the_time(number: int) -> None:
        while time.monotonic() < until:
            await mode(stubs[number % CHANNELS], workspaces[number % WRITERS])

    try:
        readers = [asyncio.create_task(read_all_the_time(number)) for number in range(READERS)]
        rounds = await asyncio.gather(*map(write_then_read, range(WRITERS)))
        await asyncio.gather(*readers)
    finally:
        for channel in channels:
            await channel.close()
    assert min(rounds) >= len(MODES)
