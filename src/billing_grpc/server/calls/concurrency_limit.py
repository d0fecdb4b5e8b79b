"""Limits how many calls run at once; a call beyond the limit is refused at once instead of waiting in vain."""

from typing import Final

import grpc

from billing_grpc.errors import Overloaded
from billing_grpc.server.auth import roles
from billing_grpc.server.call import RequestContext
from billing_grpc.server.calls.hooks import Hooks, RefusedError

WATCHERS_OF_A_CONNECTION: Final = 16
"""How many places of the watchers one connection may hold."""
_WITHOUT_PORT: Final = "unix:"
"""The prefix of peers whose connections cannot be told apart."""


class ConcurrencyLimit:
    """Refuses calls beyond the limit.

    Calls without a principal never take a place from calls with one. Health checks are not counted and never refused. The
    streams of health and reflection, which any caller may hold open, have places of their own.

    Args:
        calls: how many calls of principals may run at once.
        watchers: how many streams of health and reflection may be open at once.
    """

    def __init__(self, calls: int, watchers: int) -> None:
        self._calls = _Calls(calls)
        self._watchers = _Watchers(watchers, WATCHERS_OF_A_CONNECTION)

    def for_method(self, method: str) -> Hooks | None:
        """Return what holds a place for each call of this method; `None` for health checks."""
        if method not in roles.OPEN:
            return self._calls
        return self._watchers if method in roles.OPEN_STREAMS else None


class _Calls(Hooks):
    """A limited number of places; a call holds one while it runs."""

    def __init__(self, limit: int) -> None:
        self._limit: Final = limit
        self._running = 0

    def start(self, call: RequestContext) -> None:
        del call
        if self._running >= self._limit:
            raise Overloaded
        self._running += 1

    def end(self, call: RequestContext, code: str) -> None:
        del call, code
        self._running -= 1


class _Watchers(Hooks):
    """A limited number of places, of which one connection may hold only a part."""

    def __init__(self, limit: int, of_a_connection: int) -> None:
        self._limit: Final = limit
        self._of_a_connection: Final = of_a_connection
        # The calls that hold a place, each with its peer at the start: gRPC forgets it if the call ends at its deadline.
        self._taken: dict[RequestContext, str] = {}

    def start(self, call: RequestContext) -> None:
        peer = call.rpc.peer()
        mine = 0 if peer.startswith(_WITHOUT_PORT) else list(self._taken.values()).count(peer)
        if len(self._taken) < self._limit and mine < self._of_a_connection:
            self._taken[call] = peer
        elif call.method == roles.WATCH:
            # gRPC clients that check health take this status for healthy. After any other status they would stop calling, so
            # an unauthenticated caller could stop every client by opening streams.
            raise RefusedError(grpc.StatusCode.UNIMPLEMENTED, "no place is left for one more watch; use Check")
        else:
            raise Overloaded

    def end(self, call: RequestContext, code: str) -> None:
        del code
        del self._taken[call]
