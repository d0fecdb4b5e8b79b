"""Sends spans to a collector over OTLP/HTTP; no failure to send affects a call.

Needs the extra `tracing`; imported only where traces are configured. This service's settings say where spans go and how
many are recorded. The exporter itself also heeds OTEL_EXPORTER_OTLP_HEADERS and _CERTIFICATE, and OTEL_SDK_DISABLED.
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
"""How many spans may wait to be sent; more are dropped."""
_BATCH: Final = 512
_EVERY: Final = 1.0
"""Seconds between two batches; a full batch is sent at once."""
EXPORT_TIMEOUT: Final = 2.0
"""Seconds a batch may take, all attempts together."""
STOP_TIMEOUT: Final = 2.0
"""Seconds for the remaining spans when the server stops."""

# Set here, so that no variable of the environment changes them. Spans are small, and no caller can make them large.
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
    """Wraps an exporter: counts its failures, logs them now and then, and ends at once on shutdown."""

    def __init__(self, exporter: SpanExporter, metrics: Metrics) -> None:
        self._exporter = exporter
        self._metrics = metrics
        self._complaint = Complaint()
        self._over = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export with the wrapped exporter; fail at once after `shutdown`."""
        result = SpanExportResult.FAILURE if self._over.is_set() else self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._complaint.over()
        else:
            self._metrics.count_export_failure()
            if self._complaint.due("failed"):
                log.warning("traces lost: the collector does not take them", spans=len(spans))
        return result

    def shutdown(self) -> None:
        """End the pauses between attempts, and refuse further spans."""
        if not self._over.is_set():
            self._over.set()
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Return True: this exporter holds no spans."""
        del timeout_millis
        return True


@asynccontextmanager
async def exporting(endpoint: str, sample: float, version: str, metrics: Metrics) -> AsyncIterator[Tracing]:
    """Yield tracing whose spans are sent while the context lasts; at its end, the rest get `STOP_TIMEOUT` seconds.

    Args:
        endpoint: the collector's URL for traces, as in `http://127.0.0.1:4318/v1/traces`.
        sample: the share of new traces to record; a trace that a caller began is recorded if the caller records it.
        version: of this service.
        metrics: where lost batches are counted.
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
        # The loop may be closed by then.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(done.set)

    # The SDK waits half a minute. A thread of the loop's own pool would delay the end of the process by that time.
    threading.Thread(target=stop, daemon=True).start()
    with suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), STOP_TIMEOUT)
    exporter.shutdown()
