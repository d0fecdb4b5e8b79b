"""What is counted about calls: as their callers saw them end, under names that no caller makes up."""

import asyncio
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.errors import DatabaseUnreachable
from billing_grpc.server.listener import AccessPolicy
from billing_grpc.server.settings.limits import Limits
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.testing import InMemoryRepository, running_server

WORKSPACE: Final = "7f1fc6a0-0000-4000-8000-000000000001"
RESOLVE: Final = service_pb.ResolveBillingModeRequest(workspace_id=WORKSPACE)
GET: Final = service_pb.GetWorkspaceBillingModeRequest(workspace_id=WORKSPACE)
UNKNOWN: Final = service_pb.GetWorkspaceBillingModeRequest(workspace_id=WORKSPACE.replace("1", "2"))


def calls(metrics: Metrics) -> dict[tuple[str, str], float]:
    """How many calls ended how, by method and code, those that there were."""
    return {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "billing_grpc_calls_total" and sample.value
    }


def timed(metrics: Metrics) -> dict[str, float]:
    return {
        sample.labels["method"]: sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "billing_grpc_call_seconds_count"
    }


async def until_counted(metrics: Metrics, number: int) -> dict[tuple[str, str], float]:
    """The caller may have its answer before the server has counted it."""
    async with asyncio.timeout(10):
        while sum(calls(metrics).values()) < number:
            await asyncio.sleep(0.01)
    return calls(metrics)


ENDS: Final[dict[str, tuple[str, Any, str]]] = {
    "answered": ("ResolveBillingMode", RESOLVE, "OK"),
    "a wrong request": (
        "ResolveBillingMode",
        service_pb.ResolveBillingModeRequest(workspace_id="x"),
        "INVALID_ARGUMENT",
    ),
    "nothing there": ("GetWorkspaceBillingMode", UNKNOWN, "NOT_FOUND"),
    "a stale etag": (
        "SetWorkspaceBillingMode",
        service_pb.SetWorkspaceBillingModeRequest(workspace_id=WORKSPACE, mode="BILLING_MODE_BYOK", etag="7"),
        "ABORTED",
    ),
}


@pytest.mark.parametrize(("method", "request_", "code"), ENDS.values(), ids=ENDS)
async def test_a_call_is_counted_under_its_method_and_the_status_its_caller_got(
    method: str, request_: Any, code: str
) -> None:
    metrics = Metrics()
    async with (
        running_server(InMemoryRepository({WORKSPACE: "byok"}), metrics=metrics) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        assert (await getattr(stub, method)(request_, timeout=10).code()).name == code

        assert await until_counted(metrics, 1) == {(f"BillingModeService/{method}", code): 1}
        assert timed(metrics) == {f"BillingModeService/{method}": 1}


async def test_refusals_outages_and_failures_are_counted_by_what_the_caller_was_told() -> None:
    metrics, repository = Metrics(), InMemoryRepository({WORKSPACE: "byok"})
    async with (
        running_server(repository, metrics=metrics) as target,
        running_server(repository, metrics=metrics, access_policy=AccessPolicy()) as closed,
        running_server(repository, metrics=metrics, limits=Limits(max_concurrent_calls=1)) as narrow,
        grpc.aio.insecure_channel(target) as channel,
        grpc.aio.insecure_channel(closed) as closed_channel,
        grpc.aio.insecure_channel(narrow) as narrow_channel,
    ):
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        stranger: Any = service_grpc.BillingModeServiceStub(closed_channel)
        one_place: Any = service_grpc.BillingModeServiceStub(narrow_channel)
        await stranger.ResolveBillingMode(RESOLVE, timeout=10).code()
        repository.failure = DatabaseUnreachable()
        await stub.GetWorkspaceBillingMode(GET, timeout=10).code()
        broken: Any = repository
        broken.failure = TypeError("what no repository should raise")
        await stub.ResolveBillingMode(RESOLVE, timeout=10).code()
        repository.failure, repository.delay, before = None, 0.9, repository.calls
        running = one_place.ResolveBillingMode(RESOLVE, timeout=10)
        ended = asyncio.ensure_future(running.code())
        while repository.calls == before:
            await asyncio.sleep(0.01)
        await one_place.ResolveBillingMode(RESOLVE, timeout=10).code()
        running.cancel()
        assert await ended is grpc.StatusCode.CANCELLED

        assert await until_counted(metrics, 5) == {
            ("BillingModeService/ResolveBillingMode", "UNAUTHENTICATED"): 1,
            ("BillingModeService/GetWorkspaceBillingMode", "UNAVAILABLE"): 1,
            ("BillingModeService/ResolveBillingMode", "INTERNAL"): 1,
            ("BillingModeService/ResolveBillingMode", "RESOURCE_EXHAUSTED"): 1,
            ("BillingModeService/ResolveBillingMode", "CANCELLED"): 1,
        }


async def test_a_call_whose_time_was_up_is_told_from_one_that_was_cancelled() -> None:
    metrics, repository = Metrics(), InMemoryRepository({WORKSPACE: "byok"})
    repository.delay = 3.0
    async with (
        running_server(repository, metrics=metrics, storage_timeout=5.0) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        # A request that comes after its deadline: nothing of ours ends before it.
        stub: Any = channel.stream_unary("/molecule.billing.v1.BillingModeService/ResolveBillingMode")
        assert await stub(_nothing(), timeout=0.3).code() is grpc.StatusCode.DEADLINE_EXCEEDED

        assert await until_counted(metrics, 1) == {("BillingModeService/ResolveBillingMode", "DEADLINE_EXCEEDED"): 1}


async def _nothing() -> Any:
    await asyncio.sleep(2)
    yield b""


async def test_a_strangers_methods_are_one_series() -> None:
    metrics = Metrics()
    async with (
        running_server(InMemoryRepository(), metrics=metrics) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        for method in ("/a.B/C", "/molecule.billing.v1.BillingModeService/Nothing", "/molecule.billing.v1.Other/X"):
            call: Any = channel.unary_unary(method)
            await call(b"", timeout=5).code()

        assert await until_counted(metrics, 3) == {("other", "UNIMPLEMENTED"): 3}
        assert timed(metrics) == {"other": 3}


async def test_calls_in_progress_are_counted_while_they_are_and_watchers_are_not() -> None:
    metrics, repository = Metrics(), InMemoryRepository({WORKSPACE: "byok"})

    def in_flight() -> float | None:
        metrics.gauges.refresh()
        return metrics.registry.get_sample_value("billing_grpc_calls_in_flight")

    async with running_server(repository, metrics=metrics) as target, grpc.aio.insecure_channel(target) as channel:
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        watching = health.Watch(health_pb2.HealthCheckRequest())
        await watching.read()
        assert in_flight() == 0
        repository.delay = 0.5
        running = [asyncio.ensure_future(stub.ResolveBillingMode(RESOLVE, timeout=10).code()) for _ in range(3)]
        async with asyncio.timeout(5):
            while in_flight() != 3:
                await asyncio.sleep(0.01)
        await asyncio.gather(*running)
        async with asyncio.timeout(5):
            while in_flight() != 0:
                await asyncio.sleep(0.01)
        watching.cancel()

        ended = await until_counted(metrics, 4)
    assert ended["Health/Watch", "CANCELLED"] == 1
    assert "Health/Watch" not in timed(metrics)
