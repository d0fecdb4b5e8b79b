"""The context of the request in progress: its id, its caller and the workspace that it is about."""

import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from billing_grpc.model import Principal
from billing_grpc.wire import metadata

HEADER: Final = metadata.REQUEST_ID

_ACCEPTED_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class RequestContext:
    """What the server knows about one request; each part is set as soon as it was checked.

    Attributes:
        request_id: the id of the request.
        principal: the caller; `None` before authentication and for methods that need no principal.
        workspace: the id of the workspace, checked and in lower case; empty if the request names no workspace; for a batch
            the number of its ids; `None` before the check, so that no unchecked text reaches a log.
    """

    request_id: str
    principal: Principal | None = None
    workspace: str | int | None = None

    @property
    def caller(self) -> Principal:
        """Return the authenticated caller.

        Raises:
            LookupError: the caller was not authenticated, which is a bug in the order of the interceptors.
        """
        if self.principal is None:
            raise LookupError("the caller of this request was not authenticated")
        return self.principal


# A context variable, because gRPC gives an interceptor no other way to the handler, and structlog none to its processors.
current_request: ContextVar[RequestContext] = ContextVar("current_request")
"""The request in progress. Reading it outside of a request without a default is a bug and raises `LookupError`."""


def request_id(given: list[str | bytes]) -> str:
    """Return the caller's id for its request if it is safe to log, else a new one.

    Args:
        given: the values of `HEADER` in the call's metadata.
    """
    if len(given) == 1 and isinstance(given[0], str) and _ACCEPTED_ID.fullmatch(given[0]):
        return given[0]
    return uuid.uuid4().hex
