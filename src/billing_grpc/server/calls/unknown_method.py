"""Answers calls of unknown methods, so that they are logged and counted like any other call."""

from collections.abc import Container

import grpc

from billing_grpc.server.call import RequestContext
from billing_grpc.server.calls.hooks import Hooks, RefusedError


class UnknownMethod(Hooks):
    """Refuses the calls of unknown methods with UNIMPLEMENTED; reads neither the request nor the caller.

    Args:
        known: the full names of the known methods.
    """

    def __init__(self, known: Container[str]) -> None:
        self._known = known

    def for_method(self, method: str) -> Hooks | None:
        """Return itself for an unknown method."""
        return None if method in self._known else self

    def start(self, call: RequestContext) -> None:
        """Refuse the call."""
        del call
        raise RefusedError(grpc.StatusCode.UNIMPLEMENTED, "unknown method")


async def no_answer(call: RequestContext) -> None:
    """Stand in for the answer of an unknown method; the call never comes that far."""
    raise AssertionError(f"nothing refused {call.method!r}")
