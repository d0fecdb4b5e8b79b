"""The W3C trace context in a call's metadata, as a client sends it and a server takes it up."""

import re
from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Metadata = Sequence[tuple[str, str | bytes]]

_W3C: Final = TraceContextTextMapPropagator()
_PARENT: Final = "traceparent"
_STATE: Final = "tracestate"
# The library repeats in its log what it does not like in a header; what it is given here, it likes.
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_KEY: Final = r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_VALUE: Final = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER: Final = f"{_KEY}={_VALUE}"
_TRACESTATE: Final = re.compile(rf"{_MEMBER}(?:[ \t]*,[ \t]*{_MEMBER}){{0,31}}")
_LONGEST_STATE: Final = 512


def extract(metadata: Metadata) -> Context:
    """The trace that a caller is in, by its metadata; an empty context when it is in none, or says so wrongly."""
    carrier: dict[str, str] = {}
    for name, form, longest in ((_PARENT, _TRACEPARENT, 55), (_STATE, _TRACESTATE, _LONGEST_STATE)):
        given = [value for key, value in metadata if key == name]
        if len(given) == 1 and isinstance(given[0], str) and len(given[0]) <= longest and form.fullmatch(given[0]):
            carrier[name] = given[0]
    return _W3C.extract(carrier, Context())


def inject(metadata: Metadata) -> list[tuple[str, str | bytes]]:
    """A call's metadata and, where the caller is in a trace, `traceparent` and `tracestate`; any given are replaced."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return [pair for pair in metadata if pair[0] not in carrier] + list(carrier.items())


def current_trace() -> tuple[str, str] | None:
    """The ids of the current trace and span, in hexadecimal; None outside of one."""
    context = get_current_span().get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None
