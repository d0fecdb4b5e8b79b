"""One line for every call: which method, how it ended, how long it took, who called, and about which workspace."""

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
    """Logs calls, and neither their metadata nor what they carry. Health checks and reflection at DEBUG.

    A method that this server does not know is a stranger's text: quoted, and cut to 100 characters. A workspace stands in
    the line once its id was checked, never as it was sent.
    """

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The method's handler, logged when it has run."""
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
    """The workspace that was asked about, or how many; None where the request was never found to be right."""
    return {"workspaces": workspace} if isinstance(workspace, int) else {"workspace": workspace}
