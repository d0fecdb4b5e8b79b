"""Spans on their way to a collector: bounded in number and in time, whatever the collector does."""

import asyncio
import time
from collections.abc import Iterator
from typing import Final

import pytest

from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.trace_export import EXPORT_TIMEOUT, QUEUE, STOP_TIMEOUT, exporting
from tests.support.otlp import Collector, collecting

RESOLVE: Final = "/molecule.billing.v1.BillingModeService/ResolveBillingMode"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def failures(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("billing_grpc_trace_export_failures_total") or 0


async def test_what_is_left_is_sent_at_the_end(
    collector: Collector,
) -> None:
    metrics = Metrics()
    async with exporting(collector.endpoint, 1.0, "1.2.3", metrics) as tracing:
        for _ in range(50):
            tracing.call_span(RESOLVE, ()).end("OK")

    assert len(collector.spans()) == 50
    assert failures(metrics) == 0


async def test_a_hung_collector_with_a_full_queue_delays_the_end_by_two_seconds_at_most(
    collector: Collector,
) -> None:
    collector.hangs.set()
    metrics, slowest = Metrics(), 0.0

    async def beat() -> None:
        nonlocal slowest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            slowest = max(slowest, time.monotonic() - before)

    async with exporting(collector.endpoint, 1.0, "1.2.3", metrics) as tracing:
        for _ in range(QUEUE + 1000):
            tracing.call_span(RESOLVE, ()).end("OK")
        beating = asyncio.create_task(beat())
        ending = time.monotonic()
    took = time.monotonic() - ending
    beating.cancel()

    assert took < STOP_TIMEOUT + 1.5
    assert slowest < 1.0, "the loop goes on meanwhile"


async def test_a_batch_that_nobody_takes_is_given_up_in_time_and_counted(collector: Collector) -> None:
    collector.hangs.set()
    metrics = Metrics()
    async with exporting(collector.endpoint, 1.0, "1.2.3", metrics) as tracing:
        tracing.call_span(RESOLVE, ()).end("OK")
        async with asyncio.timeout(2 * EXPORT_TIMEOUT + 3):
            while not failures(metrics):
                await asyncio.sleep(0.05)
