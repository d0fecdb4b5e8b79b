"""Reads a request only after its call is allowed; gRPC by itself reads and parses it before any handler runs."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from billing_grpc.errors import FieldViolation, InvalidArgument
from billing_grpc.server.auth import roles
from billing_grpc.server.calls.rebuild import Behaviour, Context, Continuation, Handler, behaviour_of

Parse = Callable[[bytes], Any]


class LateReading(grpc.aio.ServerInterceptor):
    """Serves a method of one request as a method of a request stream and reads its first message; the wire is the same.

    A request that is no message of the method is INVALID_ARGUMENT, and so is a call without a request. A request that does
    not arrive in time is RESOURCE_EXHAUSTED, because a repeated call may succeed. The single answer of a method is written
    here too: gRPC by itself keeps the call's place until the caller takes the answer, and it need never do so. If too many
    calls without a principal wait for their callers, the one that has waited longest is out of time; an honest request
    arrives at once, and an honest caller takes its answer at once.

    Args:
        seconds: how long a caller may take to send its request, and again to take its answer.
        open_seconds: the same for methods that need no principal.
    """

    def __init__(self, seconds: float, open_seconds: float) -> None:
        self._waiting = _Waiting(seconds, limit=None)
        self._open_waiting = _Waiting(open_seconds, limit=_MAX_OPEN_WAITING)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Return the method's handler, which then reads its request itself."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        behaviour, parse = behaviour_of(handler), handler.request_deserializer or bytes
        if handler.request_streaming:
            reading = _each(behaviour, parse)
        else:
            is_open = handler_call_details.method in roles.OPEN
            reading = _first(behaviour, parse, self._open_waiting if is_open else self._waiting)
        if handler.request_streaming and not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(reading, None, handler.response_serializer)
        return grpc.stream_stream_rpc_method_handler(reading, None, handler.response_serializer)


_CANCELLATION_PAUSE: Final = 0.005
"""Seconds."""
_MAX_OPEN_WAITING: Final = 128
"""How many calls without a principal may wait for their callers; an honest one waits for a turn of the loop or two."""


class _Waiting:
    """The calls whose request has not arrived, or whose answer has not been taken."""

    def __init__(self, seconds: float, limit: int | None) -> None:
        self._seconds = seconds
        self._limit = limit
        self._timeouts: dict[asyncio.Timeout, None] = {}

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Limit the time that the body may take.

        Raises:
            TimeoutError: the time is over, or too many calls have begun to wait since.
        """
        async with asyncio.timeout(self._seconds) as timeout:
            self._timeouts[timeout] = None
            try:
                if self._limit is not None and len(self._timeouts) > self._limit:
                    oldest = next(iter(self._timeouts))
                    del self._timeouts[oldest]
                    oldest.reschedule(asyncio.get_running_loop().time())
                yield
            finally:
                self._timeouts.pop(timeout, None)


def _first(behaviour: Behaviour, parse: Parse, waiting: _Waiting) -> Behaviour:
    async def request(requests: AsyncIterator[bytes], context: "Context") -> Any:
        try:
            async with waiting.one():
                raw = await anext(requests)
        except TimeoutError:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the request did not arrive in time")
        except StopAsyncIteration:
            # gRPC also ends the stream of a call that is cancelled, late or too large, and cancels the call a few turns of
            # the loop later: this pause lets that cancellation arrive.
            await asyncio.sleep(_CANCELLATION_PAUSE)
            raise _not_a_message() from None
        return _parsed(raw, parse)

    async def answering(requests: AsyncIterator[bytes], context: "Context") -> None:
        response = await behaviour(await request(requests, context), context)
        try:
            async with waiting.one():
                await context.write(response)
        except TimeoutError as error:
            # A status would wait behind the answer.
            raise grpc.aio.InternalError("the caller does not take the answer") from error

    async def writing(requests: AsyncIterator[bytes], context: "Context") -> None:
        async for response in behaviour(await request(requests, context), context):
            await context.write(response)

    return writing if inspect.isasyncgenfunction(behaviour) else answering


def _each(behaviour: Behaviour, parse: Parse) -> Behaviour:
    async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for raw in requests:
            yield _parsed(raw, parse)

    async def answering(requests: AsyncIterator[bytes], context: "Context") -> Any:
        return await behaviour(parsed(requests), context)

    # Written here and not yielded: gRPC would write outside of all interceptors, and log a traceback if the caller is gone.
    async def writing(requests: AsyncIterator[bytes], context: "Context") -> None:
        async for response in behaviour(parsed(requests), context):
            await context.write(response)

    return writing if inspect.isasyncgenfunction(behaviour) else answering


def _parsed(raw: bytes, parse: Parse) -> Any:
    try:
        return parse(raw)
    except DecodeError:
        # The error's text repeats parts of the request.
        raise _not_a_message() from None


def _not_a_message() -> InvalidArgument:
    return InvalidArgument("TEXT_INVALID", FieldViolation("request", "is not a message of this method"))
