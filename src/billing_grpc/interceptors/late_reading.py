"""Reads a request only once its caller may make it: gRPC by itself reads and parses before any handler runs."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from billing_grpc import access
from billing_grpc.errors import FieldViolation, InvalidArgument
from billing_grpc.interceptors._rebuild import Behaviour, Context, Continuation, Handler, behaviour_of

Parse = Callable[[bytes], Any]


class LateReading(grpc.aio.ServerInterceptor):
    """Turns methods of one request into methods of a stream whose first message it takes; on the wire both are the same.

    What is not a message of the method is INVALID_ARGUMENT, and so is a call without any. A request that does not arrive in
    time is RESOURCE_EXHAUSTED: it held what others might have used, and may well succeed when it is repeated.

    Args:
        seconds: how long a caller may take to send its request.
        seconds_of_strangers: the same for methods that need no principal.
    """

    def __init__(self, seconds: float, seconds_of_strangers: float) -> None:
        self._seconds = seconds
        self._seconds_of_strangers = seconds_of_strangers

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
            is_open = handler_call_details.method in access.OPEN
            reading = _first(behaviour, parse, self._seconds_of_strangers if is_open else self._seconds)
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(reading, None, handler.response_serializer)


_CANCELLATION_PAUSE: Final = 0.005
"""Seconds."""


def _first(behaviour: Behaviour, parse: Parse, seconds: float) -> Behaviour:
    async def request(requests: AsyncIterator[bytes], context: "Context") -> Any:
        try:
            async with asyncio.timeout(seconds):
                raw = await anext(requests)
        except TimeoutError:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the request did not arrive in time")
        except StopAsyncIteration:
            # gRPC ends the stream too when the call is cancelled, late or too large, and says so a few turns of the loop
            # later: that cancellation, when there is one, arrives here.
            await asyncio.sleep(_CANCELLATION_PAUSE)
            raise _not_a_message() from None
        return _parsed(raw, parse)

    async def answering(requests: AsyncIterator[bytes], context: "Context") -> Any:
        return await behaviour(await request(requests, context), context)

    async def generating(requests: AsyncIterator[bytes], context: "Context") -> AsyncIterator[Any]:
        async for response in behaviour(await request(requests, context), context):
            yield response

    return generating if inspect.isasyncgenfunction(behaviour) else answering


def _each(behaviour: Behaviour, parse: Parse) -> Behaviour:
    async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for raw in requests:
            yield _parsed(raw, parse)

    async def answering(requests: AsyncIterator[bytes], context: "Context") -> Any:
        return await behaviour(parsed(requests), context)

    async def generating(requests: AsyncIterator[bytes], context: "Context") -> AsyncIterator[Any]:
        async for response in behaviour(parsed(requests), context):
            yield response

    return generating if inspect.isasyncgenfunction(behaviour) else answering


def _parsed(raw: bytes, parse: Parse) -> Any:
    try:
        return parse(raw)
    except DecodeError:
        # Its text repeats parts of what was sent.
        raise _not_a_message() from None


def _not_a_message() -> InvalidArgument:
    return InvalidArgument("TEXT_INVALID", FieldViolation("request", "is not a message of this method"))
