"""Limits how many calls run at once; a call beyond the limit is refused at once instead of waiting in vain."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import grpc

from billing_grpc.errors import Overloaded
from billing_grpc.server.auth import roles
from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild

WATCHERS_OF_A_CONNECTION: Final = 16
"""How many places of the watchers one connection may hold."""
_WITHOUT_PORT: Final = "unix:"
"""The prefix of peers whose connections cannot be told apart."""


class _Places:
    """A limited number of places; a call holds one while it runs, and one connection may hold only a part of them."""

    def __init__(self, limit: int, of_a_connection: int) -> None:
        self._limit: Final = limit
        self._of_a_connection: Final = of_a_connection
        self._taken: Counter[str] = Counter()

    def free_for(self, context: "Context") -> bool:
        """Return whether one more call on this connection gets a place."""
        peer = context.peer()
        mine = 0 if peer.startswith(_WITHOUT_PORT) else self._taken[peer]
        return self._taken.total() < self._limit and mine < self._of_a_connection

    @contextmanager
    def one(self, context: "Context") -> Iterator[None]:
        """Hold a place."""
        peer = context.peer()
        self._taken[peer] += 1
        try:
            yield
        finally:
            self._taken[peer] -= 1
            self._taken += Counter()  # removes the zeros


class ConcurrencyLimit(grpc.aio.ServerInterceptor):
    """Refuses calls beyond the limit.

    Calls without a principal never take a place from calls with one. Health checks are not counted and never refused. The
    streams of health and reflection, which any caller may hold open, have places of their own.

    Args:
        calls: how many calls of principals may run at once.
        watchers: how many streams of health and reflection may be open at once.
    """

    def __init__(self, calls: int, watchers: int) -> None:
        self._calls = calls
        self._running = 0
        self._watchers = _Places(watchers, WATCHERS_OF_A_CONNECTION)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Return the method's handler, which then holds a place while it runs."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler_call_details.method not in roles.OPEN:
            return rebuild(handler, self._call)
        if handler_call_details.method not in roles.OPEN_STREAMS:
            return handler
        return rebuild(handler, self._watch if handler_call_details.method == roles.WATCH else self._stream)

    @asynccontextmanager
    async def _call(self, context: "Context") -> AsyncIterator[None]:
        del context
        if self._running >= self._calls:
            raise Overloaded
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    @asynccontextmanager
    async def _stream(self, context: "Context") -> AsyncIterator[None]:
        if not self._watchers.free_for(context):
            raise Overloaded
        with self._watchers.one(context):
            yield

    @asynccontextmanager
    async def _watch(self, context: "Context") -> AsyncIterator[None]:
        if not self._watchers.free_for(context):
            # gRPC clients that check health take this status for healthy. After any other status they would stop calling, so
            # an unauthenticated caller could stop every client by opening streams.
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no place is left for one more watch; use Check")
        with self._watchers.one(context):
            yield
