"""The W3C trace context in the metadata of a call, as the server reads it."""

import re
from typing import Final

from opentelemetry.context import Context, get_current
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from billing_grpc.wire.metadata import Metadata

_W3C: Final = TraceContextTextMapPropagator()
_PARENT: Final = "traceparent"
_STATE: Final = "tracestate"
# The library logs a header that it cannot parse. So only valid headers are passed to it.
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_KEY: Final = r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_VALUE: Final = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER: Final = f"{_KEY}={_VALUE}"
_TRACESTATE: Final = re.compile(rf"{_MEMBER}(?:[ \t]*,[ \t]*{_MEMBER}){{0,31}}")
_MAX_STATE_LENGTH: Final = 512


def extract(metadata: Metadata) -> Context:
    """Return the trace context in a call's metadata; an empty context if it is missing or invalid."""
    carrier: dict[str, str] = {}
    for name, form, longest in ((_PARENT, _TRACEPARENT, 55), (_STATE, _TRACESTATE, _MAX_STATE_LENGTH)):
        given = [value for key, value in metadata if key == name]
        if len(given) == 1 and isinstance(given[0], str) and len(given[0]) <= longest and form.fullmatch(given[0]):
            carrier[name] = given[0]
    return _W3C.extract(carrier, Context())


def current_trace() -> tuple[str, str] | None:
    """Return the ids of the current trace and span, in hexadecimal; None outside of a trace."""
    # Every log line asks. Without traces the context is empty.
    if not get_current():
        return None
    context = get_current_span().get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None
