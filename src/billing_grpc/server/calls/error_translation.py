"""Turns every error into a status: ours into a rich one, any other into a constant text."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import grpc
import structlog
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from billing_grpc.errors import RequestError
from billing_grpc.server.call import HEADER, current_request
from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild
from billing_grpc.wire import statuses

log = structlog.stdlib.get_logger(__name__)

_INTERNAL = status_pb2.Status(code=code_pb2.INTERNAL, message="internal error")
_INTERRUPTED = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="the call was interrupted; retry")


class ErrorTranslation(grpc.aio.ServerInterceptor):
    """Translates errors, so that no exception text reaches a caller."""

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return the method's handler with its errors translated; `None` for an unknown method, which gRPC answers."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return rebuild(handler, lambda context: _translated(context, handler_call_details.method))


@asynccontextmanager
async def _translated(context: "Context", method: str) -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AbortError:
        # The handler has aborted already; a second abort would raise.
        raise
    except grpc.aio.InternalError as error:
        raise _gone() from error
    except RequestError as error:
        await _abort(context, statuses.error_to_status(error))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # A cancellation that this call did not cause would leave the client without any answer.
        log.exception("call interrupted", method=method)
        await _abort(context, _INTERRUPTED)
    except Exception:
        log.exception("unexpected error", method=method)
        await _abort(context, _INTERNAL)


def _gone() -> asyncio.CancelledError:
    """Return the error that ends a call whose caller is gone: then gRPC fails to write."""
    return asyncio.CancelledError("the caller is gone")


async def _abort(context: "Context", status: status_pb2.Status) -> NoReturn:
    rich = rpc_status.to_status(status)
    # An abort replaces the trailing metadata, so the request id is added again.
    named = (*rich.trailing_metadata, (HEADER, current_request.get().request_id))
    try:
        await context.abort_with_status(rich._replace(trailing_metadata=named))
    except grpc.aio.InternalError as error:
        raise _gone() from error
    raise AssertionError("abort_with_status returned")
