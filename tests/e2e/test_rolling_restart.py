"""Two servers behind a client that balances, one restarted after the other under load: no call is lost."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import pytest

from billing_grpc import service_config
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from tests.support.polling import PATIENCE
from tests.support.ports import free_port
from tests.support.servers import Serve, Server, decision
from tests.support.workspaces import as_service

CALLERS: Final = 8
STEADY: Final = 200
"""Calls that both servers answer before the next of them is restarted."""

MODES: Final = ("byok", "disabled")
"""Each server publishes another org default, which tells who answered."""

# id: whether the channel repeats what was unavailable, whether it watches health, seconds from NOT_SERVING to the stop
WAYS: Final = {
    "as the contract's policy says": (True, False, 0.0),
    "with a watch on health, a delay and no retries": (False, True, 1.0),
}


@dataclass
class Load:
    """What the callers have seen so far."""

    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    async def until_both_answer(self) -> None:
        before = Counter(self.answered)
        async with asyncio.timeout(PATIENCE):
            while any(self.answered[mode] < before[mode] + STEADY for mode in MODES):
                await asyncio.sleep(0.02)


def options(*, retries: bool, health: bool) -> list[tuple[str, str | int]]:
    """Of a channel that asks every address in turn and comes back to one that was gone within a second."""
    policy: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries:
        policy |= json.loads(str(dict(service_config.channel_options())["grpc.service_config"]))
    if health:
        policy["healthCheckConfig"] = {"serviceName": "molecule.billing.v1.BillingModeService"}
    return [
        ("grpc.service_config", json.dumps(policy)),
        ("grpc.enable_retries", int(retries)),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


@asynccontextmanager
async def load(servers: list[Server], *, retries: bool, health: bool) -> AsyncIterator[Load]:
    """Callers that call without a pause."""
    seen = Load()
    request = service_pb.ResolveBillingModeRequest()
    target = "ipv4:" + ",".join(server.address for server in servers)

    async def call_on(stub: Any) -> None:
        while True:
            try:
                answer = await stub.ResolveBillingMode(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                seen.failed[f"{error.code().name}: {error.details()}"] += 1
            else:
                seen.answered[decision(answer.resolution)[0]] += 1

    async with grpc.aio.insecure_channel(target, options=options(retries=retries, health=health)) as channel:
        callers = [asyncio.create_task(call_on(service_grpc.BillingModeServiceStub(channel))) for _ in range(CALLERS)]
        try:
            yield seen
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)


async def restart_each(
    serve: Serve, database_url: str, number: signal.Signals, *, retries: bool, health: bool, delay: float
) -> Load:
    """What callers saw of two servers of which each was restarted on its port."""

    def start(mode: str, address: str) -> Server:
        return serve(
            settings={
                "DATABASE_URL": as_service(database_url),
                "MOLECULE_LLM_BILLING_MODE": mode,
                "BILLING_GRPC_LISTEN": address,
                "BILLING_GRPC_DRAIN_DELAY": str(delay),
                "BILLING_GRPC_LOG_LEVEL": "WARNING",
            }
        )

    servers = [start(mode, f"127.0.0.1:{free_port()}") for mode in MODES]
    addresses = [server.address for server in servers]
    async with load(servers, retries=retries, health=health) as seen:
        for server, mode, address in zip(servers, MODES, addresses, strict=True):
            await seen.until_both_answer()
            ended = await asyncio.to_thread(server.stop, number)
            assert ended == (-number if number is signal.SIGKILL else 0)
            await asyncio.to_thread(start, mode, address)
        await seen.until_both_answer()
    return seen


@pytest.mark.parametrize(("retries", "health", "delay"), WAYS.values(), ids=WAYS)
async def test_a_rolling_restart_under_load_loses_no_call(
    serve: Serve, database_url: str, *, retries: bool, health: bool, delay: float
) -> None:
    seen = await restart_each(serve, database_url, signal.SIGTERM, retries=retries, health=health, delay=delay)
    assert seen.failed == Counter()
    assert all(seen.answered[mode] > STEADY for mode in MODES)
