"""Makes a span for every call, in its caller's trace."""

from billing_grpc.server.auth import roles
from billing_grpc.server.call import RequestContext
from billing_grpc.server.calls.hooks import Hooks
from billing_grpc.server.telemetry.spans import Tracing


class CallSpan(Hooks):
    """Runs each call inside a span; health and reflection get no span.

    Args:
        tracing: makes the spans.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def for_method(self, method: str) -> Hooks | None:
        """Return itself for a method that gets spans."""
        return None if method in roles.OPEN else self

    def start(self, call: RequestContext) -> None:
        """Make the span the current one."""
        call.span = self._tracing.call_span(call.method, call.metadata)

    def end(self, call: RequestContext, code: str) -> None:
        """End the span with the status that the caller got."""
        if call.span is not None:
            call.span.end(code)
