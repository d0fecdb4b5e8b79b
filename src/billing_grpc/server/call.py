"""The context of one request: gRPC's own, its id, its caller and the workspace that it is about."""

import random
import re
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from billing_grpc.model import Principal
from billing_grpc.server.telemetry.spans import CurrentSpan

if TYPE_CHECKING:
    import grpc

_ACCEPTED_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_ID_BITS: Final = 128

# Quoted, because grpcio's classes take type parameters in the type stubs alone.
Rpc: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(slots=True, eq=False)
class RequestContext:
    """What the server knows about one request; each part is set as soon as it was checked.

    Attributes:
        rpc: gRPC's context of the call.
        method: the full name of the method, as in `/package.Service/Method`; of an unknown method, as the caller sent it.
        metadata: the metadata that the caller sent.
        request_id: the id of the request; empty until `calls.request_id` has set it.
        principal: the caller; `None` before authentication and for methods that need no principal.
        workspace: the id of the workspace, checked and in lower case; empty if the request names no workspace; for a batch
            the number of its ids; `None` before the check, so that no unchecked text reaches a log.
        started: when the call began, in seconds of `time.perf_counter`.
        span: the span that the call runs in; `None` without traces.
    """

    rpc: "Rpc"
    method: str
    metadata: Sequence[tuple[str, str | bytes]] = ()
    request_id: str = ""
    principal: Principal | None = None
    workspace: str | int | None = None
    started: float = field(default_factory=time.perf_counter)
    span: CurrentSpan | None = None

    @property
    def caller(self) -> Principal:
        """Return the authenticated caller.

        Raises:
            LookupError: the caller was not authenticated, which is a bug in the order of the behaviours.
        """
        if self.principal is None:
            raise LookupError("the caller of this request was not authenticated")
        return self.principal

    def sent(self, key: str) -> list[str | bytes]:
        """Return the values of a key in the metadata that the caller sent."""
        return [value for name, value in self.metadata if name == key]

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline; `None` if there is no deadline."""
        left: float | None = self.rpc.time_remaining()
        return left


# A context variable, because structlog gives its processors no other way to the request.
current_request_id: ContextVar[str] = ContextVar("current_request_id")
"""The id of the request in progress, for the lines that are logged on its behalf; unset outside of a request."""


def request_id(given: Sequence[str | bytes]) -> str:
    """Return the caller's id for its request if it is safe to log, else a new one.

    Args:
        given: the values of `x-request-id` in the call's metadata.
    """
    if len(given) == 1 and isinstance(given[0], str) and _ACCEPTED_ID.fullmatch(given[0]):
        return given[0]
    # An id has to be unique, not secret: asking the system for random bytes takes ten times as long.
    return f"{random.getrandbits(_ID_BITS):032x}"
