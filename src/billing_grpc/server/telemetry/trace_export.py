"""Sends spans to a collector, over OTLP/HTTP, where nothing that goes wrong is felt by a call.

Needs the extra `tracing`; imported only where traces are configured. Where to, as whom and how many is told by this
service's settings. The exporter itself also heeds OTEL_EXPORTER_OTLP_HEADERS and _CERTIFICATE, and OTEL_SDK_DISABLED.
"""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.spans import Tracing
from billing_grpc.watched_file import Complaint

log = structlog.stdlib.get_logger(__name__)

QUEUE: Final = 2048
"""Spans that wait to be sent; more are dropped."""
_BATCH: Final = 512
_EVERY: Final = 1.0
"""Seconds between two batches, unless there are many."""
EXPORT_TIMEOUT: Final = 2.0
"""Seconds a batch may take, all attempts together."""
STOP_TIMEOUT: Final = 2.0
"""Seconds for what is left when the server stops."""

# Given, so that no variable of the environment has a say in it. Spans here are small; nobody can make them large.
_LIMITS: Final = SpanLimits(
    max_attributes=16,
    max_events=0,
    max_links=0,
    max_span_attributes=16,
    max_event_attributes=0,
    max_link_attributes=0,
    max_attribute_length=256,
    max_span_attribute_length=256,
)


class _Exporter(SpanExporter):
    """Another exporter whose failures are counted, said now and then, and over at once when there is no more time."""

    def __init__(self, exporter: SpanExporter, metrics: Metrics) -> None:
        self._exporter = exporter
        self._metrics = metrics
        self._complaint = Complaint()
        self._over = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the other; a failure at once after `shutdown`."""
        result = SpanExportResult.FAILURE if self._over.is_set() else self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._complaint.over()
        else:
            self._metrics.count_export_failure()
            if self._complaint.due("failed"):
                log.warning("traces lost: the collector does not take them", spans=len(spans))
        return result

    def shutdown(self) -> None:
        """Ends the pauses between attempts, and takes no more."""
        if not self._over.is_set():
            self._over.set()
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        del timeout_millis
        return True


@asynccontextmanager
async def exporting(endpoint: str, sample: float, version: str, metrics: Metrics) -> AsyncIterator[Tracing]:
    """Tracing whose spans are sent while the context lasts; at its end, what is left has two seconds to go.

    Args:
        endpoint: the collector's URL for traces, as in `http://127.0.0.1:4318/v1/traces`.
        sample: the part of the traces to record that begin here; a caller's trace is recorded when the caller does.
        version: of this service.
        metrics: where batches that were lost are counted.
    """
    resource = Resource(
        {"service.name": "billing_grpc", "service.version": version, "service.instance.id": str(uuid.uuid4())}
    )
    provider = TracerProvider(
        ParentBased(TraceIdRatioBased(sample)), resource, shutdown_on_exit=False, span_limits=_LIMITS
    )
    exporter = _Exporter(OTLPSpanExporter(endpoint, timeout=EXPORT_TIMEOUT), metrics)
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=QUEUE,
            schedule_delay_millis=_EVERY * 1000,
            max_export_batch_size=_BATCH,
            export_timeout_millis=EXPORT_TIMEOUT * 1000,
        )
    )
    try:
        yield Tracing(provider.get_tracer("billing_grpc", version))
    finally:
        await _stopped(provider, exporter)


async def _stopped(provider: TracerProvider, exporter: _Exporter) -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        provider.shutdown()
        # The loop does not wait for a thread that comes too late.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(done.set)

    # The SDK waits half a minute, and for a thread of the loop's own pool everybody would wait at the end.
    threading.Thread(target=stop, daemon=True).start()
    with suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), STOP_TIMEOUT)
    exporter.shutdown()
