"""How a call ended, said the same way by everyone who tells about it."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc

from billing_grpc.errors import RequestError
from billing_grpc.wire import statuses

if TYPE_CHECKING:
    from billing_grpc.server.calls.rebuild import Context

_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
OK: Final = "OK"


def code_of(error: BaseException, context: "Context") -> str:
    """The name of the status that a call with this error ends with."""
    match error:
        case RequestError():
            return _NAMES[statuses.status_code(error)]
        case grpc.aio.AbortError():
            # A number or the enum's member, whatever the type stubs say.
            code: Any = context.code()
            return str(getattr(code, "name", _NAMES.get(code, "UNKNOWN")))
        case asyncio.CancelledError() | GeneratorExit() | grpc.aio.InternalError():
            # gRPC itself ends a call whose time is up; its caller has been told so. Writing fails when the caller is gone.
            left: float | None = context.time_remaining()
            return "CANCELLED" if left is None or left > 0 else "DEADLINE_EXCEEDED"
        case _:
            return "INTERNAL"
