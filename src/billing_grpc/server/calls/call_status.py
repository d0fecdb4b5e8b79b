"""The status that a call ends with, the same for the log, the metrics and the span."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc

from billing_grpc.errors import RequestError
from billing_grpc.server.calls.hooks import RefusedError
from billing_grpc.wire import statuses

if TYPE_CHECKING:
    from billing_grpc.server.call import Rpc

_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
OK: Final = "OK"


def code_of(error: BaseException, rpc: "Rpc") -> str:
    """Return the name of the status with which a call ends that raised this error."""
    match error:
        case RequestError():
            return _NAMES[statuses.status_code(error)]
        case RefusedError():
            return error.code.name
        case grpc.aio.AbortError():
            # Either a number or a member of the enum; the type stubs know one of them only.
            code: Any = rpc.code()
            return str(getattr(code, "name", _NAMES.get(code, "UNKNOWN")))
        case asyncio.CancelledError() | GeneratorExit() | grpc.aio.InternalError():
            # gRPC itself ends a call at its deadline and answers it. A write fails when the caller is gone.
            left: float | None = rpc.time_remaining()
            return "CANCELLED" if left is None or left > 0 else "DEADLINE_EXCEEDED"
        case _:
            return "INTERNAL"
