"""Continue the caller's trace on the server, where the OpenTelemetry API is installed: the client does not need it."""

from billing_grpc.wire.metadata import Metadata

try:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError:  # then no trace can be running
    _inject = None
else:
    _inject = TraceContextTextMapPropagator().inject


def inject(metadata: Metadata) -> list[tuple[str, str | bytes]]:
    """Return the metadata with the current trace context, if there is one; it replaces `traceparent` and `tracestate`."""
    carrier: dict[str, str] = {}
    if _inject is not None:
        _inject(carrier)
    return [pair for pair in metadata if pair[0] not in carrier] + list(carrier.items())
