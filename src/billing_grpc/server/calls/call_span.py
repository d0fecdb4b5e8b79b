"""Makes a span for every call, in its caller's trace."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from billing_grpc.server.auth import roles
from billing_grpc.server.calls.call_status import OK, code_of
from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild
from billing_grpc.server.telemetry.spans import Tracing, ended


class CallSpan(grpc.aio.ServerInterceptor):
    """Runs each call inside a span; health and reflection get no span.

    Args:
        tracing: makes the spans.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Return the method's handler, which then runs inside a span."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method in roles.OPEN:
            return handler
        metadata = tuple(handler_call_details.invocation_metadata or ())

        @asynccontextmanager
        async def spanned(context: "Context") -> AsyncIterator[None]:
            with self._tracing.call_span(method, metadata) as span:
                code = OK
                try:
                    yield
                except BaseException as error:
                    code = code_of(error, context)
                    raise
                finally:
                    ended(span, code)

        return rebuild(handler, spanned)
