"""The types of what surrounds a call: a behaviour's hooks at its start and end, and the answer inside of them."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

import grpc

from billing_grpc.server.call import RequestContext

# Quoted, because grpcio's classes take type parameters in the type stubs alone.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Answer: TypeAlias = Callable[[RequestContext], Awaitable[Any]]
"""What answers the calls of a method, inside of its behaviours."""


class Hooks:
    """What one behaviour does around the calls of one method; the base class does nothing.

    An object serves all calls of its method, so what belongs to one call is kept in its context. Hooks do not wait: both
    are plain functions.
    """

    def start(self, call: RequestContext) -> None:
        """Begin a call, or raise to end it; a behaviour that raises here is not ended."""

    def end(self, call: RequestContext, code: str) -> None:
        """End a call that was begun, however it went.

        Args:
            call: the call.
            code: the name of its status.
        """


class Behaviour(Protocol):
    """Something that happens around calls."""

    def for_method(self, method: str) -> Hooks | None:
        """Return what happens around the calls of this method, known or not; `None` for nothing. Called once, at start."""


class RefusedError(Exception):
    """A call ends with a status without details; the message is constant and is sent to the caller."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
