"""No more calls at once than the server was told: the others are refused at once instead of waiting in vain."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc

from billing_grpc import access
from billing_grpc.errors import Overloaded
from billing_grpc.interceptors._rebuild import Context, Continuation, Handler, rebuild


class _Places:
    """A number of places; a call takes one while it runs."""

    def __init__(self, limit: int) -> None:
        self._limit: Final = limit
        self._taken = 0

    @asynccontextmanager
    async def one(self, context: "Context") -> AsyncIterator[None]:
        """One place.

        Raises:
            Overloaded: all are taken.
        """
        del context
        if self._taken >= self._limit:
            raise Overloaded
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class ConcurrencyLimit(grpc.aio.ServerInterceptor):
    """Counts the calls in progress.

    What needs no principal never takes a place from those who have one: health checks are not counted and never refused,
    and streams that anybody may hold open, of health and of reflection, have places of their own.

    Args:
        calls: how many calls of principals may run at once.
        watchers: how many open streams of strangers.
    """

    def __init__(self, calls: int, watchers: int) -> None:
        self._calls = _Places(calls)
        self._watchers = _Places(watchers)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The method's handler, counted while it runs."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler_call_details.method not in access.OPEN:
            return rebuild(handler, self._calls.one)
        return rebuild(handler, self._watchers.one) if handler.response_streaming else handler
