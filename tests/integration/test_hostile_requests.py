"""Requests that no library would send: each ends in its own refusal, and the server goes on."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.server.auth.principals import Principals, token_digest
from billing_grpc.server.auth.principals_file import FixedPrincipals
from billing_grpc.server.calls.concurrency_limit import WATCHERS_OF_A_CONNECTION
from billing_grpc.server.listener import AccessPolicy
from billing_grpc.server.settings.limits import Limits
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.testing import InMemoryRepository, running_server
from tests.support.raw_http2 import DATA, EMPTY, GOAWAY, HEADERS, NO_WINDOW, RST_STREAM, Connection, connected, message

RESETS: Final = Path(__file__).parents[1] / "support" / "rapid_reset.py"
RESOLVE: Final = "/molecule.billing.v1.BillingModeService/ResolveBillingMode"
SET: Final = "/molecule.billing.v1.BillingModeService/SetWorkspaceBillingMode"
CHECK: Final = "/grpc.health.v1.Health/Check"
WATCH: Final = "/grpc.health.v1.Health/Watch"
REFLECT: Final = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
KNOWN: Final = Principals.parse(
    f'[[principal]]\nname = "a"\nrole = "admin"\ntoken_sha256 = ["{token_digest("right")}"]\n'
    f'[[principal]]\nname = "r"\nrole = "reader"\ntoken_sha256 = ["{token_digest("reader")}"]\n'
)
RIGHT: Final = (("authorization", "Bearer right"),)
READER: Final = (("authorization", "Bearer reader"),)
SOON: Final = Limits(request_timeout=0.3, open_request_timeout=0.1)
NOT_A_MESSAGE: Final = b"request: is not a message of this method"
REFUSED_STREAM: Final = b"\0\0\0\x07"


def serving(
    limits: Limits | None = None, repository: InMemoryRepository | None = None, metrics: Metrics | None = None
) -> Any:
    access_policy = AccessPolicy(FixedPrincipals(KNOWN))
    return running_server(
        repository or InMemoryRepository(),
        access_policy=access_policy,
        limits=limits,
        storage_timeout=5.0,
        metrics=metrics,
    )


@asynccontextmanager
async def stubs(target: str) -> AsyncIterator[tuple[Any, Any]]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield service_grpc.BillingModeServiceStub(channel), health_pb2_grpc.HealthStub(channel)


async def assert_well(target: str) -> None:
    async with stubs(target) as (billing, health):
        await billing.ResolveBillingMode(service_pb.ResolveBillingModeRequest(), timeout=5, metadata=RIGHT)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=5)


async def answer(connection: Connection, seconds: float = 5.0) -> bytes:
    """The headers that end the only call of a connection."""
    async with asyncio.timeout(seconds):
        while True:
            kind, _, payload = await connection.frame()
            if kind == HEADERS and b"grpc-status" in payload:
                return payload


def status(code: grpc.StatusCode) -> bytes:
    number = str(code.value[0]).encode()
    return b"grpc-status" + bytes((len(number),)) + number


@pytest.mark.parametrize("path", [b"\xff", b"/\xc3(/\xff", b"", b"/", b"x" * 126], ids=repr)
async def test_a_path_that_no_method_can_have_leaves_the_server_serving(path: bytes) -> None:
    # From grpcio 1.84 on the first of them ends the whole server while the process lives on.
    async with serving() as target:
        for _ in range(3):
            async with connected(target) as connection:
                connection.send(connection.open(path), EMPTY)
                await answer(connection)
        await assert_well(target)


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        (RESOLVE, (), grpc.StatusCode.UNAUTHENTICATED),
        (SET, (("authorization", "Bearer wrong"),), grpc.StatusCode.UNAUTHENTICATED),
        (SET, READER, grpc.StatusCode.PERMISSION_DENIED),
    ],
    ids=["no credentials", "a wrong token", "a role that may not"],
)
async def test_who_may_not_call_is_told_so_before_it_sends_a_request(
    path: str, headers: Any, code: grpc.StatusCode
) -> None:
    async with serving() as target, connected(target) as connection:
        connection.open(path, headers)
        assert status(code) in await answer(connection)


async def test_calls_of_strangers_without_a_request_hold_nothing() -> None:
    limits = Limits(max_concurrent_calls=2, max_watchers=2, max_streams=5000)
    async with serving(limits) as target, connected(target) as connection:
        for wave in range(1, 6):
            for _ in range(500):
                connection.open(RESOLVE)
            await assert_well(target)
            async with asyncio.timeout(10):
                while sum(kind == HEADERS for kind, _, _ in connection.frames) < wave * 500:
                    await connection.frame()


@pytest.mark.parametrize(
    ("path", "payload"),
    [(RESOLVE, b"\xff\xff\xff"), (CHECK, b"\xff\xff\xff"), (WATCH, b"\xff"), (REFLECT, b"\xff"), (RESOLVE, None)],
    ids=["unary", "health", "watch", "reflection", "no message at all"],
)
async def test_what_is_not_a_message_is_an_invalid_argument_and_no_error_of_ours(
    path: str, payload: bytes | None
) -> None:
    with capture_logs() as records:
        async with serving() as target, connected(target) as connection:
            stream = connection.open(path, RIGHT)
            connection.send(stream, b"" if payload is None else message(payload))
            ended = await answer(connection)
            await assert_well(target)
    assert status(grpc.StatusCode.INVALID_ARGUMENT) in ended
    assert NOT_A_MESSAGE in ended
    (call, *_) = [each for each in records if each["event"] == "call" and each["method"] == path]
    assert call["code"] == "INVALID_ARGUMENT"
    assert {each["log_level"] for each in records} <= {"debug", "info"}


@pytest.mark.parametrize(
    ("path", "least"), [(RESOLVE, 0.25), (CHECK, 0.08), (WATCH, 0.08)], ids=["billing", "health", "watch"]
)
async def test_a_request_that_does_not_come_is_not_waited_for(path: str, least: float) -> None:
    async with serving(SOON) as target, connected(target) as connection:
        started = time.monotonic()
        connection.open(path, RIGHT)
        ended = await answer(connection, 2.0)
        assert least <= time.monotonic() - started
        assert status(grpc.StatusCode.RESOURCE_EXHAUSTED) in ended
        assert b"the request did not arrive in time" in ended
        assert b"x-request-id" in ended
        await assert_well(target)


async def test_open_methods_get_the_shorter_time() -> None:
    async with serving(Limits(request_timeout=60, open_request_timeout=0.1)) as target, connected(target) as connection:
        connection.open(CHECK)
        assert status(grpc.StatusCode.RESOURCE_EXHAUSTED) in await answer(connection, 2.0)


async def test_one_connection_has_no_more_calls_open_than_it_may() -> None:
    async with serving(Limits(max_streams=10, max_watchers=100)) as target, connected(target) as connection:
        await connection.listen(0.5)  # a client keeps to what it was told, and this one has been told
        for _ in range(25):
            connection.send(connection.open(WATCH), EMPTY)
        await connection.listen(1.0)
        refused = [payload for kind, _, payload in connection.frames if kind == RST_STREAM]
        assert refused == [REFUSED_STREAM] * 15
        await assert_well(target)


async def test_a_client_that_keeps_to_the_streams_of_a_connection_loses_no_call() -> None:
    limits = Limits(max_streams=10, max_concurrent_calls=10)
    async with serving(limits) as target, stubs(target) as (billing, _):
        request = service_pb.ResolveBillingModeRequest()
        calls = [billing.ResolveBillingMode(request, timeout=20, metadata=RIGHT) for _ in range(300)]
        await asyncio.gather(*calls)


async def test_calls_that_are_reset_at_once_count_until_they_are_tidied_up() -> None:
    async with serving(Limits(max_streams=10)) as target, connected(target) as connection:
        await connection.listen(0.5)
        for _ in range(1000):
            connection.reset(connection.open(RESOLVE, RIGHT))
        await connection.listen(1.0)
        refused = [payload for kind, _, payload in connection.frames if (kind, payload) == (RST_STREAM, REFUSED_STREAM)]
        assert len(refused) > 500
        await assert_well(target)


async def test_two_connections_that_reset_calls_as_fast_as_they_can_stop_nobody() -> None:
    async with serving() as target, AsyncExitStack() as stack:
        for _ in range(2):
            command = (sys.executable, str(RESETS), target, RESOLVE)
            attack = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            stack.push_async_callback(attack.wait)
            stack.callback(attack.kill)
            assert attack.stdout is not None
            await attack.stdout.readline()  # it has begun
        billing, _ = await stack.enter_async_context(stubs(target))
        for _ in range(3):
            await billing.ResolveBillingMode(service_pb.ResolveBillingModeRequest(), timeout=5, metadata=RIGHT)
            await asyncio.sleep(0.05)


async def test_checks_without_a_request_take_no_place_from_callers_and_from_other_checks() -> None:
    limits = Limits(max_concurrent_calls=1, max_watchers=1, max_streams=5000, open_request_timeout=30)
    async with serving(limits) as target, connected(target) as connection:
        for _ in range(3):
            for _ in range(1000):
                connection.open(CHECK)
            await connection.listen(0.5)
            await assert_well(target)


async def watched(health: Any) -> bool:
    """Whether there was a place to watch from."""
    try:
        await health.Watch(health_pb2.HealthCheckRequest(), timeout=5).read()
    except grpc.aio.AioRpcError:
        return False
    return True


async def answered(billing: Any) -> bool:
    call = billing.ResolveBillingMode(service_pb.ResolveBillingModeRequest(), timeout=5, metadata=RIGHT)
    code = await call.code()
    assert code in {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
    return code is grpc.StatusCode.OK


@pytest.mark.parametrize(("path", "token"), [(CHECK, ()), (RESOLVE, READER)], ids=["a stranger", "a principal"])
async def test_answers_that_are_never_taken_take_no_place_from_callers(
    path: str, token: tuple[tuple[str, str], ...]
) -> None:
    async with serving(SOON) as target, AsyncExitStack() as opened:
        for _ in range(16):
            deaf = await opened.enter_async_context(connected(target, NO_WINDOW))
            for _ in range(SOON.max_streams):
                deaf.send(deaf.open(path, token), EMPTY)
            await deaf.drain()
            await deaf.listen(0.02)
        async with stubs(target) as (billing, health):
            async with asyncio.timeout(20):  # a principal's calls may wait for their caller
                while not await answered(billing):
                    await asyncio.sleep(0.1)
            for _ in range(50):
                await billing.ResolveBillingMode(service_pb.ResolveBillingModeRequest(), timeout=5, metadata=RIGHT)
                await health.Check(health_pb2.HealthCheckRequest(), timeout=5)


async def test_calls_that_arrive_while_the_server_is_busy_wait_for_it() -> None:
    # By default gRPC cancels calls by chance once a thousand wait, and a caller cannot tell that from its own cancellation.
    limits = Limits(max_concurrent_calls=5000, open_request_timeout=30)
    async with serving(limits) as target, AsyncExitStack() as opened, asyncio.timeout(30):
        callers = [await opened.enter_async_context(connected(target)) for _ in range(40)]
        for caller in callers:
            for _ in range(limits.max_streams):
                caller.send(caller.open(RESOLVE, READER), EMPTY)
        time.sleep(1)  # noqa: ASYNC251 - the server runs in this loop too, and must take no call meanwhile
        for caller in callers:
            ended = 0
            while ended < limits.max_streams:
                kind, _, _ = await caller.frame()
                assert kind != RST_STREAM
                ended += kind == DATA  # the only answer of a call


def running(method: str) -> int:
    """How many calls of a method gRPC runs in this process."""
    return sum(task.get_name() == f"HandleExceptions[{method}]" for task in asyncio.all_tasks())


@pytest.mark.parametrize(("path", "token"), [(CHECK, ()), (RESOLVE, READER)], ids=["a stranger", "a principal"])
async def test_an_answer_that_is_never_taken_is_not_waited_for(path: str, token: tuple[tuple[str, str], ...]) -> None:
    limits = Limits(request_timeout=1.0, open_request_timeout=1.0)
    async with serving(limits) as target, connected(target, NO_WINDOW) as deaf, asyncio.timeout(20):
        for _ in range(20):
            deaf.send(deaf.open(path, token), EMPTY)
        while running(path) < 20:
            await deaf.listen(0.02)
        while running(path):
            await deaf.listen(0.05)
        await assert_well(target)


async def test_of_the_strangers_who_take_no_answer_the_latest_128_are_waited_for() -> None:
    async with serving(Limits(open_request_timeout=60)) as target, AsyncExitStack() as opened, asyncio.timeout(20):
        for _ in range(2):
            deaf = await opened.enter_async_context(connected(target, NO_WINDOW))
            for _ in range(100):
                deaf.send(deaf.open(CHECK), EMPTY)
            await deaf.listen(0.2)
        while running(CHECK) != 128:
            await asyncio.sleep(0.05)


async def test_one_connection_has_no_more_watches_open_than_it_may() -> None:
    async with serving() as target, stubs(target) as (_, health), stubs(target) as (_, other):
        request = health_pb2.HealthCheckRequest()
        watching = [health.Watch(request) for _ in range(WATCHERS_OF_A_CONNECTION)]
        for watch in watching:
            await watch.read()
        assert not await watched(health)
        assert await watched(other)
        watching[0].cancel()
        async with asyncio.timeout(5):
            while not await watched(health):
                await asyncio.sleep(0.05)


async def test_a_watch_that_ends_at_its_deadline_gives_its_place_back() -> None:
    async with serving(Limits(max_watchers=WATCHERS_OF_A_CONNECTION)) as target, stubs(target) as (_, health):
        request = health_pb2.HealthCheckRequest()
        for _ in range(3):
            ending = [health.Watch(request, timeout=0.1) for _ in range(WATCHERS_OF_A_CONNECTION)]
            for watch in ending:
                await watch.code()
            while running(WATCH):
                await asyncio.sleep(0.05)
        # On a busy machine some of them arrive only now.
        await asyncio.sleep(0.5)
        for watch in [health.Watch(request) for _ in range(WATCHERS_OF_A_CONNECTION)]:
            await watch.read()


async def test_a_client_that_checks_health_goes_on_calling_when_no_place_to_watch_is_left() -> None:
    policy = {"healthCheckConfig": {"serviceName": ""}, "loadBalancingConfig": [{"round_robin": {}}]}
    async with serving(Limits(max_watchers=1)) as target, stubs(target) as (_, health):
        watch = health.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        options = [("grpc.service_config", json.dumps(policy)), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            billing: Any = service_grpc.BillingModeServiceStub(channel)
            await billing.ResolveBillingMode(service_pb.ResolveBillingModeRequest(), timeout=5, metadata=RIGHT)


async def until_gone(connection: Connection, path: str, headers: Any, payload: bytes | None) -> None:
    """Opens calls and takes them back about when their refusal is due."""
    for wave in range(20):
        streams = [connection.open(path, headers) for _ in range(20)]
        if payload is not None:
            for stream in streams:
                connection.send(stream, payload)
        await asyncio.sleep(0.003 * (wave % 10))
        for stream in streams:
            connection.reset(stream)
    await connection.listen(0.3)


@pytest.mark.parametrize(
    ("path", "headers", "payload"),
    [
        ("/no.such.Service/Method", (), None),
        (RESOLVE, (), None),
        (RESOLVE, RIGHT, message(b"\xff")),
        (CHECK, (), message(b"\x0a\x01x")),
        (CHECK, (), None),
    ],
    ids=["an unknown method", "no credentials", "not a message", "an unknown name", "no request"],
)
async def test_a_refusal_of_a_caller_who_is_gone_is_no_error_of_ours(
    path: str, headers: Any, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    # Shorter than a setting may be.
    limits = Limits.model_construct(max_streams=1000, open_request_timeout=0.02)
    metrics = Metrics()
    with capture_logs() as records:
        async with serving(limits, metrics=metrics) as target, connected(target) as connection:
            await connection.listen(0.1)
            await until_gone(connection, path, headers, payload)
            await assert_well(target)
    assert {each["log_level"] for each in records} <= {"debug", "info"}
    assert "INTERNAL" not in {each["code"] for each in records if each["event"] == "call"}
    counted = [each for metric in metrics.registry.collect() for each in metric.samples]
    calls = {
        each.labels["code"]: each.value for each in counted if each.name == "billing_grpc_calls_total" and each.value
    }
    assert "CANCELLED" in calls
    assert "INTERNAL" not in calls
    assert "raised by servicer" not in caplog.text


async def test_watchers_beyond_the_limit_are_refused_and_callers_are_not() -> None:
    limits = Limits(max_watchers=3, max_concurrent_calls=1)
    async with serving(limits) as target, stubs(target) as (_, health):
        request = health_pb2.HealthCheckRequest()
        watching = [health.Watch(request) for _ in range(3)]
        for watch in watching:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health.Watch(request, timeout=5).read()
        # The one end of a watch that clients which check health take for healthy.
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "x-request-id" in dict(refused.value.trailing_metadata() or ())
        async with connected(target) as connection:  # reflection shares their places
            connection.open(REFLECT)
            assert status(grpc.StatusCode.RESOURCE_EXHAUSTED) in await answer(connection)
        await assert_well(target)

        watching[0].cancel()
        async with asyncio.timeout(5):
            while not await watched(health):
                await asyncio.sleep(0.05)


async def test_callers_take_no_place_from_watchers_and_health() -> None:
    repository = InMemoryRepository()
    repository.delay = 2.0
    async with (
        serving(Limits(max_watchers=1, max_concurrent_calls=1), repository) as target,
        stubs(target) as (billing, health),
    ):
        request = service_pb.ResolveBillingModeRequest(workspace_id="7f1fc6a0-0000-4000-8000-000000000001")
        running = asyncio.ensure_future(billing.ResolveBillingMode(request, timeout=10, metadata=RIGHT))
        while not repository.calls:
            await asyncio.sleep(0.01)
        assert await health.Watch(health_pb2.HealthCheckRequest(), timeout=5).read()
        assert await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        running.cancel()


async def test_a_connection_without_a_call_is_asked_to_go_and_one_with_a_call_stays() -> None:
    async with serving(Limits(max_connection_idle=0.3)) as target:
        async with connected(target) as silent, asyncio.timeout(10):
            while (await silent.frame())[0] != GOAWAY:
                pass
        async with connected(target) as watching:
            watching.send(watching.open(WATCH), EMPTY)
            await watching.listen(1.5)
            assert GOAWAY not in {kind for kind, _, _ in watching.frames}
        await assert_well(target)


async def test_a_giant_is_refused_whoever_sends_it() -> None:
    async with serving(Limits(max_message_bytes=2048)) as target, stubs(target) as (billing, health):
        large = service_pb.PlanProvisionEnvRequest(env_keys=["x" * 3000])
        with pytest.raises(grpc.aio.AioRpcError) as known:
            await billing.PlanProvisionEnv(large, timeout=5, metadata=RIGHT)
        with pytest.raises(grpc.aio.AioRpcError) as stranger:
            await health.Check(health_pb2.HealthCheckRequest(service="x" * 3000), timeout=5)
        assert known.value.code() is stranger.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await assert_well(target)


async def test_the_callers_deadline_reaches_the_method() -> None:
    repository = InMemoryRepository()
    repository.delay = 30.0
    async with serving(repository=repository) as target, stubs(target) as (billing, _):
        request = service_pb.ResolveBillingModeRequest(workspace_id="7f1fc6a0-0000-4000-8000-000000000001")
        answered = await billing.ResolveBillingMode(request, timeout=0.4, metadata=RIGHT)
        assert answered.resolution.error.reason == "DATABASE_TIMEOUT"


@pytest.mark.parametrize("method", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_an_unknown_method_is_refused_in_constant_words_and_logged_quoted(method: str) -> None:
    path = "/no.such.Service/" + "x" * 200
    with capture_logs() as records:
        async with serving() as target, grpc.aio.insecure_channel(target) as channel:
            call = getattr(channel, method)(path)
            # The refusal comes before any message of a stream; grpc.aio takes a write after it for an error of its own.
            call = call(*[b""] if method.startswith("unary") else [], timeout=5)
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
            assert await call.details() == "unknown method"
            assert "x-request-id" in dict(await call.trailing_metadata())
    (logged,) = [each for each in records if each["event"] == "call"]
    assert logged["method"] == repr(path[:100])
    assert (logged["code"], logged["principal"]) == ("UNIMPLEMENTED", None)
    assert logged["log_level"] == "info"


async def test_an_unknown_method_with_control_characters_cannot_forge_a_line() -> None:
    with capture_logs() as records:
        async with serving() as target, connected(target) as connection:
            connection.send(connection.open(b"/a/b\r\n\x1b[2Jforged"), EMPTY)
            await answer(connection)
    (logged,) = [each for each in records if each["event"] == "call"]
    assert logged["method"].isprintable()
