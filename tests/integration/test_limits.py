"""What the server lets itself be asked: each limit by what it does, since a misspelt option does nothing, silently."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.server.auth.principals import Principals, token_digest
from billing_grpc.server.auth.principals_file import FixedPrincipals
from billing_grpc.server.listener import AccessPolicy
from billing_grpc.server.settings.limits import Limits
from billing_grpc.testing import InMemoryRepository, running_server

WORKSPACE: Final = "7f1fc6a0-0000-4000-8000-000000000001"
REQUEST: Final = service_pb.ResolveBillingModeRequest(workspace_id=WORKSPACE)
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
PING: Final = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"12345678"
GOAWAY: Final = 0x7


@asynccontextmanager
async def client(limits: Limits, repository: InMemoryRepository | None = None) -> AsyncIterator[tuple[str, Any]]:
    async with (
        running_server(repository or InMemoryRepository({WORKSPACE: "byok"}), limits=limits) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        yield target, service_grpc.BillingModeServiceStub(channel)


async def code(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@asynccontextmanager
async def raw(target: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readexactly(9)
    return head[3], await reader.readexactly(int.from_bytes(head[:3], "big"))


async def goaway(reader: asyncio.StreamReader) -> bytes:
    """The debug text of the server's GOAWAY."""
    async with asyncio.timeout(10):
        while True:
            kind, payload = await frame(reader)
            if kind == GOAWAY:
                return payload[8:]


async def test_a_larger_message_is_refused() -> None:
    async with client(Limits(max_message_bytes=2048)) as (_, stub):
        small = service_pb.PlanProvisionEnvRequest(env_keys=["x" * 1000])
        large = service_pb.PlanProvisionEnvRequest(env_keys=["x" * 3000])
        assert await code(stub.PlanProvisionEnv(small, timeout=5)) is grpc.StatusCode.OK
        assert await code(stub.PlanProvisionEnv(large, timeout=5)) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_more_calls_at_once_are_refused_with_a_reason_and_health_is_exempt() -> None:
    repository = InMemoryRepository({WORKSPACE: "byok"})
    repository.delay = 0.8
    async with client(Limits(max_concurrent_calls=3), repository) as (target, stub):
        running = [asyncio.ensure_future(code(stub.ResolveBillingMode(REQUEST, timeout=5))) for _ in range(3)]
        while repository.calls < 3:
            await asyncio.sleep(0.01)

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ResolveBillingMode(REQUEST, timeout=5)
        info = error_details_pb2.ErrorInfo()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert rpc_status.from_call(refused.value).details[0].Unpack(info)
        assert info.reason == "OVERLOADED"
        async with grpc.aio.insecure_channel(target) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=5)

        assert await asyncio.gather(*running) == [grpc.StatusCode.OK] * 3
        assert await code(stub.ResolveBillingMode(REQUEST, timeout=5)) is grpc.StatusCode.OK


async def test_a_flood_of_strangers_takes_no_place_from_those_who_are_known() -> None:
    known = Principals.parse(f'[[principal]]\nname = "a"\nrole = "admin"\ntoken_sha256 = ["{token_digest("right")}"]')
    access_policy = AccessPolicy(FixedPrincipals(known))
    right = (("authorization", "Bearer right"),)
    async with (
        running_server(
            InMemoryRepository(), access_policy=access_policy, limits=Limits(max_concurrent_calls=1)
        ) as target,
        grpc.aio.insecure_channel(target) as strangers,
        grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        flood: Any = service_grpc.BillingModeServiceStub(strangers)
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        refused = [asyncio.ensure_future(code(flood.ResolveBillingMode(REQUEST, timeout=20))) for _ in range(500)]
        answered = [await code(stub.ResolveBillingMode(REQUEST, timeout=20, metadata=right)) for _ in range(20)]

        assert answered == [grpc.StatusCode.OK] * 20
        assert set(await asyncio.gather(*refused)) == {grpc.StatusCode.UNAUTHENTICATED}


@pytest.mark.parametrize("length", [20_000, 1 << 20], ids=["20 KB", "1 MB"])
async def test_a_huge_token_is_refused_by_the_transport_and_the_server_goes_on(length: int) -> None:
    async with client(Limits()) as (_, stub):
        metadata = (("authorization", "Bearer " + "x" * length),)
        ended = await code(stub.ResolveBillingMode(REQUEST, timeout=5, metadata=metadata))
        assert ended in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
        assert await code(stub.ResolveBillingMode(REQUEST, timeout=5)) is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("limit", "length", "ended"),
    [(2048, 4000, grpc.StatusCode.RESOURCE_EXHAUSTED), (1 << 16, 20_000, grpc.StatusCode.OK)],
    ids=["smaller than usual", "larger than usual"],
)
async def test_metadata_has_the_size_that_was_set(limit: int, length: int, ended: grpc.StatusCode) -> None:
    async with client(Limits(max_header_bytes=limit)) as (_, stub):
        metadata = (("x-trace", "x" * length),)
        assert await code(stub.ResolveBillingMode(REQUEST, timeout=5, metadata=metadata)) is ended


async def test_an_old_connection_is_asked_to_go() -> None:
    async with client(Limits(max_connection_age=0.5, max_connection_age_grace=0.5)) as (target, stub):
        async with raw(target) as (reader, writer):
            writer.write(PREFACE)
            assert b"max_age" in await goaway(reader)
        # A client of gRPC connects again without noticing.
        assert await code(stub.ResolveBillingMode(REQUEST, timeout=5)) is grpc.StatusCode.OK


async def test_a_call_on_an_old_connection_gets_its_grace_and_no_more() -> None:
    repository = InMemoryRepository({WORKSPACE: "byok"})
    repository.delay = 4.0
    limits = Limits(max_connection_age=0.2, max_connection_age_grace=0.2)
    async with (
        running_server(repository, limits=limits, storage_timeout=5.0) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        assert await code(stub.ResolveBillingMode(REQUEST, timeout=10)) is grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_pings_too_often_is_disconnected() -> None:
    async with client(Limits(min_ping_interval=60)) as (target, _), raw(target) as (reader, writer):
        # No more than it takes: what arrives after the end would reset the connection under the farewell.
        writer.write(PREFACE + PING * 4)
        assert b"too_many_pings" in await goaway(reader)


async def test_a_client_that_pings_as_agreed_stays() -> None:
    async with client(Limits(min_ping_interval=0.1)) as (target, _), raw(target) as (reader, writer):
        writer.write(PREFACE)
        acknowledged = 0
        async with asyncio.timeout(10):
            for _ in range(6):
                await asyncio.sleep(0.15)
                writer.write(PING)
                while True:
                    kind, _ = await frame(reader)
                    assert kind != GOAWAY
                    if kind == 0x6:
                        acknowledged += 1
                        break
        assert acknowledged == 6


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"], ids=["nothing", "HTTP/1.1", "TLS"])
async def test_a_connection_that_does_not_become_one_of_grpc_is_closed(said: bytes) -> None:
    async with client(Limits(handshake_timeout=0.5)) as (target, stub), raw(target) as (reader, writer):
        writer.write(said)
        async with asyncio.timeout(10):
            while await reader.read(1024):
                pass
        assert await code(stub.ResolveBillingMode(REQUEST, timeout=5)) is grpc.StatusCode.OK


async def test_more_connections_than_allowed_are_closed_and_the_others_go_on() -> None:
    async with client(Limits(max_connections=2)) as (target, stub):
        assert await code(stub.ResolveBillingMode(REQUEST, timeout=5)) is grpc.StatusCode.OK
        async with raw(target) as (second, writer):
            writer.write(PREFACE)
            assert (await frame(second))[0] == 0x4
            async with raw(target) as (third, _), asyncio.timeout(10):
                assert await third.read() == b""
        assert await code(stub.ResolveBillingMode(REQUEST, timeout=5)) is grpc.StatusCode.OK
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            async with raw(target) as (again, writer):
                writer.write(PREFACE)
                if await again.read(9):
                    return
            await asyncio.sleep(0.05)
        raise AssertionError("a closed connection still takes a place")
