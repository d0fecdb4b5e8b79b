"""The access log: one line for every call with its method, status, duration, caller and workspace."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
import structlog

from billing_grpc.server.auth import roles
from billing_grpc.server.call import current_request
from billing_grpc.server.calls.call_status import OK, code_of
from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild

log = structlog.stdlib.get_logger(__name__)

_SHOWN_METHOD: Final = 100


class AccessLog(grpc.aio.ServerInterceptor):
    """Logs every call, without its metadata and its messages; health checks and reflection at DEBUG.

    The name of an unknown method is text from an unknown caller: it is quoted and cut to 100 characters. A workspace's id
    is logged only after it was checked.
    """

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Return the method's handler, which then logs each call at its end."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        shown = method if method in roles.OPEN or method in roles.MAY_CALL else repr(method[:_SHOWN_METHOD])

        @asynccontextmanager
        async def logged(context: "Context") -> AsyncIterator[None]:
            started, code = time.perf_counter(), OK
            try:
                yield
            except BaseException as error:
                code = code_of(error, context)
                raise
            finally:
                request = current_request.get()
                principal = request.principal
                (log.debug if method in roles.OPEN else log.info)(
                    "call",
                    method=shown,
                    code=code,
                    duration_ms=round((time.perf_counter() - started) * 1000, 3),
                    principal=None if principal is None else principal.name,
                    role=None if principal is None else principal.role.value,
                    request_id=request.request_id,
                    **_about(request.workspace),
                )

        return rebuild(handler, logged)


def _about(workspace: str | int | None) -> dict[str, str | int | None]:
    """Return the log fields of the workspace, or of the number of workspaces; `None` if the request was not checked."""
    return {"workspaces": workspace} if isinstance(workspace, int) else {"workspace": workspace}
