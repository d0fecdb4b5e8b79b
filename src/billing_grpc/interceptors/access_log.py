"""One line for every call: which method, how it ended, how long it took, and who called."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
import structlog

from billing_grpc import access, convert
from billing_grpc.caller import current_principal
from billing_grpc.errors import RequestError
from billing_grpc.interceptors._rebuild import Context, Continuation, Handler, rebuild
from billing_grpc.request_id import current_request_id

log = structlog.stdlib.get_logger(__name__)

_SHOWN_METHOD: Final = 100
_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class AccessLog(grpc.aio.ServerInterceptor):
    """Logs calls, and neither their metadata nor what they carry. Health checks and reflection at DEBUG.

    A method that this server does not know is a stranger's text: quoted, and cut to 100 characters.
    """

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The method's handler, logged when it has run."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        shown = method if method in access.OPEN or method in access.MAY_CALL else repr(method[:_SHOWN_METHOD])

        @asynccontextmanager
        async def logged(context: "Context") -> AsyncIterator[None]:
            started = time.perf_counter()
            code = "INTERNAL"
            try:
                yield
                code = "OK"
            except RequestError as error:
                code = _NAMES[convert.status_code(error)]
                raise
            except grpc.aio.AbortError:
                aborted = context.code()
                code = getattr(aborted, "name", str(aborted))
                raise
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            finally:
                principal = current_principal.get(None)
                (log.debug if method in access.OPEN else log.info)(
                    "call",
                    method=shown,
                    code=code,
                    duration_ms=round((time.perf_counter() - started) * 1000, 3),
                    principal=None if principal is None else principal.name,
                    role=None if principal is None else principal.role.value,
                    request_id=current_request_id.get(),
                )

        return rebuild(handler, logged)
