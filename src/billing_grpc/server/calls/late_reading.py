"""Reads a request only after its call is allowed; gRPC by itself reads and parses it before any handler runs."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from billing_grpc.errors import FieldViolation, InvalidArgument
from billing_grpc.server.auth import roles
from billing_grpc.server.call import RequestContext
from billing_grpc.server.calls.hooks import Answer, Handler, RefusedError
from billing_grpc.server.calls.patience import Patience

Parse: TypeAlias = Callable[[bytes], Any]

_CANCELLATION_PAUSE: Final = 0.005
"""Seconds."""
_MAX_OPEN_WAITING: Final = 128
"""How many calls without a principal may wait for their callers; an honest one waits for a turn of the loop or two."""


class LateReading:
    """Answers the calls of a method from their request stream, whatever the method's kind; the wire is the same.

    A request that is no message of the method is INVALID_ARGUMENT, and so is a call without a request. A request that does
    not arrive in time is RESOURCE_EXHAUSTED, because a repeated call may succeed. If a caller does not take its
    single answer in time, gRPC's core keeps the answer, and the call is forgotten. If too many calls without a principal
    wait for their callers, the oldest ends: an honest request arrives at once, and an honest caller takes its answer at
    once.

    Args:
        seconds: how long a caller may take to send its request, and again to take its answer.
        open_seconds: the same for methods that need no principal.
    """

    def __init__(self, seconds: float, open_seconds: float) -> None:
        self._patience = Patience(seconds)
        self._open_patience = Patience(open_seconds, _MAX_OPEN_WAITING)

    def for_method(self, method: str, handler: "Handler") -> Answer:
        """Return what answers the calls of a method; its handler gets the request and the `RequestContext`."""
        parse = handler.request_deserializer or bytes
        patience = self._open_patience if method in roles.OPEN else self._patience
        # Their types know no other context than gRPC's.
        once: Any = handler.unary_unary
        serialize: Any = handler.response_serializer
        often: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                return _answering_once(once, parse, serialize, patience)
            case False, True:
                return _answering_often(often, lambda call: _request(call, parse, patience))
            case True, True:
                return _answering_often(often, lambda call: _requests(call, parse))
        # None of our services has such a method. A new one fails here, when the server starts, and not at its first call.
        raise NotImplementedError(f"{method}: a stream of requests with one answer")


def _answering_once(
    behaviour: Callable[..., Awaitable[Any]], parse: Parse, serialize: Callable[[Any], bytes], patience: Patience
) -> Answer:
    async def answer(call: RequestContext) -> bytes:
        # Not serialized by gRPC: the text of an error would reach the caller.
        response = serialize(await behaviour(await _request(call, parse, patience), call))
        # gRPC sends the answer and its status together, and waits until the caller takes them; it need never do so. The end
        # of the task ends this wait: with a callback of gRPC, only the garbage collector could free the call.
        patience.begin().add_done_callback(patience.end)
        return response

    return answer


def _answering_often(behaviour: Callable[..., Any], requested: Callable[[RequestContext], Awaitable[Any]]) -> Answer:
    async def answer(call: RequestContext) -> None:
        # Not left to gRPC: it would write outside of the chain, and log a traceback if the caller is gone.
        async for response in behaviour(await requested(call), call):
            await call.rpc.write(response)

    async def let_answer(call: RequestContext) -> None:
        await behaviour(await requested(call), call)

    return answer if inspect.isasyncgenfunction(behaviour) else let_answer


async def _request(call: RequestContext, parse: Parse, patience: Patience) -> Any:
    task = patience.begin()
    try:
        raw = await call.rpc.read()
    except asyncio.CancelledError:
        # As in `asyncio.timeout`: the call is refused only if it is not being cancelled otherwise too.
        if not patience.end(task) and task.uncancel() == 0:
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "the request did not arrive in time") from None
        raise
    finally:
        patience.end(task)
    if raw is grpc.aio.EOF:
        # gRPC also ends the stream of a call that is cancelled, late or too large, and cancels the call a few turns of the
        # loop later: this pause lets that cancellation arrive.
        await asyncio.sleep(_CANCELLATION_PAUSE)
        raise _not_a_message()
    return _parsed(raw, parse)


async def _requests(call: RequestContext, parse: Parse) -> AsyncIterator[Any]:
    async def each() -> AsyncIterator[Any]:
        while (raw := await call.rpc.read()) is not grpc.aio.EOF:
            yield _parsed(raw, parse)

    return each()


def _parsed(raw: bytes, parse: Parse) -> Any:
    try:
        return parse(raw)
    except DecodeError:
        # The error's text repeats parts of the request.
        raise _not_a_message() from None


def _not_a_message() -> InvalidArgument:
    return InvalidArgument("TEXT_INVALID", FieldViolation("request", "is not a message of this method"))
