"""No more calls at once than the server was told: the others are refused at once instead of waiting in vain."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import grpc

from billing_grpc.errors import Overloaded
from billing_grpc.server.auth import roles
from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild

WATCHERS_OF_A_CONNECTION: Final = 16
"""How many of the watchers' places one connection may hold."""
_WITHOUT_PORT: Final = "unix:"
"""How peers begin whose connections cannot be told apart."""


class _Places:
    """A number of places, of which one connection may hold a part; a call takes one while it runs."""

    def __init__(self, limit: int, of_a_connection: int) -> None:
        self._limit: Final = limit
        self._of_a_connection: Final = of_a_connection
        self._taken: Counter[str] = Counter()

    def free_for(self, context: "Context") -> bool:
        """Return whether a place is left for one more call on this connection."""
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
            self._taken += Counter()  # leaves out what is zero


class ConcurrencyLimit(grpc.aio.ServerInterceptor):
    """Counts the calls in progress.

    What needs no principal never takes a place from those who have one: health checks are not counted and never refused,
    and streams that anybody may hold open, of health and of reflection, have places of their own.

    Args:
        calls: how many calls of principals may run at once.
        watchers: how many open streams of strangers.
    """

    def __init__(self, calls: int, watchers: int) -> None:
        self._calls = calls
        self._running = 0
        self._watchers = _Places(watchers, WATCHERS_OF_A_CONNECTION)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The method's handler, counted while it runs."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler_call_details.method not in roles.OPEN:
            return rebuild(handler, self._call)
        if not handler.response_streaming:
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
            # gRPC clients that check health take this status for healthy. After any other they would call nobody, and
            # strangers could take every client down by watching.
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no place is left for one more watch; use Check")
        with self._watchers.one(context):
            yield
