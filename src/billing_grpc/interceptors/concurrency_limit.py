"""No more calls at once than the server was told: the others are refused at once instead of waiting in vain."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from billing_grpc import access
from billing_grpc.errors import Overloaded
from billing_grpc.interceptors._rebuild import Context, Continuation, Handler, rebuild


class ConcurrencyLimit(grpc.aio.ServerInterceptor):
    """Counts the calls in progress; health and reflection are not counted and never refused.

    Args:
        limit: how many may run at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The method's handler, counted while it runs."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method in access.OPEN:
            return handler
        return rebuild(handler, self._counted)

    @asynccontextmanager
    async def _counted(self, context: "Context") -> AsyncIterator[None]:
        del context
        if self._running >= self._limit:
            raise Overloaded
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
