"""Answers a failed call: with a rich status if the error is one of ours, with a constant text if it is any other."""

import asyncio
from typing import NoReturn

import grpc
import structlog
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from billing_grpc.errors import RequestError
from billing_grpc.server.call import RequestContext
from billing_grpc.server.calls.hooks import RefusedError
from billing_grpc.wire import statuses
from billing_grpc.wire.metadata import REQUEST_ID

log = structlog.stdlib.get_logger(__name__)

_INTERNAL = status_pb2.Status(code=code_pb2.INTERNAL, message="internal error")
_INTERRUPTED = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="the call was interrupted; retry")


async def answer_error(call: RequestContext, error: BaseException) -> NoReturn:
    """Send the status of the error that a call raised, so that no exception's text reaches a caller.

    Raises:
        AbortError: the status was sent.
        CancelledError: the call is cancelled, or its caller is gone; gRPC has answered, or cannot.
    """
    try:
        match error:
            case grpc.aio.AbortError():
                # The handler has aborted already; a second abort would raise.
                raise error
            case RefusedError():
                await call.rpc.abort(error.code, error.message)
            case RequestError():
                await _abort(call, statuses.error_to_status(error))
            case asyncio.CancelledError():
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise error
                # A cancellation that this call did not cause would leave the client without any answer.
                log.error("call interrupted", method=call.method, exc_info=error)
                await _abort(call, _INTERRUPTED)
            case grpc.aio.InternalError():
                raise error
            case Exception():
                log.error("unexpected error", method=call.method, exc_info=error)
                await _abort(call, _INTERNAL)
    except grpc.aio.InternalError as gone:
        # gRPC fails to write if the caller is gone.
        raise asyncio.CancelledError("the caller is gone") from gone
    raise error


async def _abort(call: RequestContext, status: status_pb2.Status) -> None:
    rich = rpc_status.to_status(status)
    # An abort replaces the trailing metadata, so the request id is added again.
    named = (*rich.trailing_metadata, (REQUEST_ID, call.request_id))
    await call.rpc.abort_with_status(rich._replace(trailing_metadata=named))
