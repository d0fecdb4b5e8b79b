"""Reads a request only once its caller may make it: gRPC by itself reads and parses before any handler runs."""

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
    """Turns methods of one request into methods of a stream whose first message it takes; on the wire both are the same.

    What is not a message of the method is INVALID_ARGUMENT, and so is a call without any. A request that does not arrive in
    time is RESOURCE_EXHAUSTED: it held what others might have used, and may well succeed when it is repeated. The single
    answer of a method is written here too: gRPC by itself would keep the call's place until the caller takes the answer,
    for ever if it wants to. When many calls of strangers wait for their callers, the one that has waited longest is out of
    time: honest requests come at once, and honest callers take their answers at once.

    Args:
        seconds: how long a caller may take to send its request, and to take its answer.
        seconds_of_strangers: the same for methods that need no principal.
    """

    def __init__(self, seconds: float, seconds_of_strangers: float) -> None:
        self._waiting = _Waiting(seconds, most=None)
        self._waiting_strangers = _Waiting(seconds_of_strangers, most=_MOST_STRANGERS)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The method's handler, which then reads for itself."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        behaviour, parse = behaviour_of(handler), handler.request_deserializer or bytes
        if handler.request_streaming:
            reading = _each(behaviour, parse)
        else:
            is_open = handler_call_details.method in roles.OPEN
            reading = _first(behaviour, parse, self._waiting_strangers if is_open else self._waiting)
        if handler.request_streaming and not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(reading, None, handler.response_serializer)
        return grpc.stream_stream_rpc_method_handler(reading, None, handler.response_serializer)


_CANCELLATION_PAUSE: Final = 0.005
"""Seconds."""
_MOST_STRANGERS: Final = 128
"""How many calls of strangers may wait for their callers; an honest one waits for a turn of the loop or two."""


class _Waiting:
    """The calls whose request has not arrived, or whose answer has not been taken."""

    def __init__(self, seconds: float, most: int | None) -> None:
        self._seconds = seconds
        self._most = most
        self._patience: dict[asyncio.Timeout, None] = {}

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait no longer than allowed.

        Raises:
            TimeoutError: the time is over, or too many others have come since.
        """
        async with asyncio.timeout(self._seconds) as patience:
            self._patience[patience] = None
            try:
                if self._most is not None and len(self._patience) > self._most:
                    longest = next(iter(self._patience))
                    del self._patience[longest]
                    longest.reschedule(asyncio.get_running_loop().time())
                yield
            finally:
                self._patience.pop(patience, None)


def _first(behaviour: Behaviour, parse: Parse, waiting: _Waiting) -> Behaviour:
    async def request(requests: AsyncIterator[bytes], context: "Context") -> Any:
        try:
            async with waiting.one():
                raw = await anext(requests)
        except TimeoutError:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the request did not arrive in time")
        except StopAsyncIteration:
            # gRPC ends the stream too when the call is cancelled, late or too large, and says so a few turns of the loop
            # later: that cancellation, when there is one, arrives here.
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

    # Not by `yield`: gRPC would write outside of all interceptors, where a caller who is gone is an error with a traceback.
    async def writing(requests: AsyncIterator[bytes], context: "Context") -> None:
        async for response in behaviour(parsed(requests), context):
            await context.write(response)

    return writing if inspect.isasyncgenfunction(behaviour) else answering


def _parsed(raw: bytes, parse: Parse) -> Any:
    try:
        return parse(raw)
    except DecodeError:
        # Its text repeats parts of what was sent.
        raise _not_a_message() from None


def _not_a_message() -> InvalidArgument:
    return InvalidArgument("TEXT_INVALID", FieldViolation("request", "is not a message of this method"))
