"""Call the server on behalf of an HTTP caller, with the caller's credentials and nothing else's."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from billing_grpc import service_config
from billing_grpc.client.asyncio_calls import is_cancelled
from billing_grpc.client.channel import Dialer
from billing_grpc.errors import ServerUnreachable
from billing_grpc.validation import MAX_ACTOR
from billing_grpc.wire.metadata import ACTOR, AUTHORIZATION, REQUEST_ID

Answer = TypeVar("Answer", bound=Message)
LetIn: TypeAlias = Callable[[str], bool]
"""Returns whether an `authorization` is that of a page that acts as the server's local admin."""
NO_CREDENTIALS: Final = "none"
"""The `authorization` of a call whose caller sent none that can be sent on.

Without this header the server could take the call for the gateway's own, by its client certificate or, under local admin, by
its address. With it the server refuses the call, counts it and logs it.
"""

_HANDED_ON: Final = (REQUEST_ID, "traceparent", "tracestate")
_REFUSED_ACTOR: Final = "?" * (MAX_ACTOR + 1)
"""Replaces an actor that cannot be sent on. The server refuses it, so no change is recorded without its actor."""
_SENDABLE: Final = re.compile(r"[ -~]{1,4200}")
"""A longer token is none of the server's, and gRPC would refuse the call for it without a reason."""
_DEFAULT_TIMEOUT: Final = 5.0
"""Seconds for a method that the policy does not list."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, in the metadata of the call that is made for them.

    Attributes:
        metadata: the metadata of the call.
    """

    metadata: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, values: Callable[[str], Sequence[str]], let_in: LetIn) -> "Caller":
        """Return the caller of an HTTP request.

        Args:
            values: returns the values of a header.
            let_in: as described there.
        """
        given = values(AUTHORIZATION)
        if len(given) == 1 and let_in(given[0]):
            return cls(_handed_on(values))
        sendable = all(_SENDABLE.fullmatch(value) for value in given)
        credentials = [(AUTHORIZATION, value) for value in given if sendable] or [(AUTHORIZATION, NO_CREDENTIALS)]
        return cls((*credentials, *_handed_on(values)))


def _handed_on(values: Callable[[str], Sequence[str]]) -> tuple[tuple[str, str], ...]:
    actors = [(ACTOR, value if _SENDABLE.fullmatch(value) else _REFUSED_ACTOR) for value in values(ACTOR) if value]
    return (*actors, *((key, value) for key in _HANDED_ON for value in values(key) if _SENDABLE.fullmatch(value)))


class Upstream:
    """The server behind the gateway.

    Args:
        dialer: the connection to it, without a token.
        timeout: seconds that a call may take if its caller sets no limit; `None` for the timeouts of the shipped policy.
    """

    def __init__(self, dialer: Dialer, timeout: float | None = None) -> None:
        self._dialer = dialer
        self._timeout = timeout

    async def call(
        self,
        method: MethodDescriptor,
        request: Message,
        answer_type: type[Answer],
        caller: Caller,
        seconds: float | None = None,
    ) -> tuple[Answer, str]:
        """Return the answer of a unary method, and the request's id. The call may take the given seconds.

        Raises:
            grpc.aio.AioRpcError: the call failed.
        """
        invoke = self._channel().unary_unary(
            path(method),
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer_type.FromString,
        )
        running = invoke(request, timeout=self._seconds(method, seconds), metadata=caller.metadata)
        try:
            answer = await running
        except asyncio.CancelledError:
            # gRPC raises this too if the channel is closed during the call; only a cancelled task may let it pass.
            if is_cancelled():
                raise
            raise _failed("the connection was closed during the call") from None
        # gRPC returns `None` for a message that does not parse, against its type annotation.
        if not isinstance(answer, answer_type):
            raise _failed("the answer is not a message of this method")
        return answer, request_id(await running.trailing_metadata())

    async def stream(
        self,
        method: MethodDescriptor,
        request: Message,
        answer_type: type[Answer],
        caller: Caller,
        seconds: float | None = None,
    ) -> AsyncGenerator[Answer, None]:
        """Yield the answers of a method that streams them; it ends when the server ends it, or after `seconds`.

        Raises:
            grpc.aio.AioRpcError: the call failed.
        """
        invoke = self._channel().unary_stream(
            path(method),
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer_type.FromString,
        )
        running = invoke(request, timeout=seconds, metadata=caller.metadata)
        try:
            async for answer in running:
                yield answer
        finally:
            running.cancel()

    async def close(self) -> None:
        """End the connection."""
        await self._dialer.close()

    def _channel(self) -> grpc.aio.Channel:
        try:
            return self._dialer.channel()
        except ServerUnreachable as error:
            raise _failed(str(error)) from error

    def _seconds(self, method: MethodDescriptor, given: float | None) -> float:
        if given is not None:
            return max(given, 0)
        if self._timeout is not None:
            return self._timeout
        try:
            return service_config.timeout(method.name)
        except KeyError:
            return _DEFAULT_TIMEOUT


def path(method: MethodDescriptor) -> str:
    """Return a method's path, which gRPC and Connect share."""
    return f"/{method.containing_service.full_name}/{method.name}"


def request_id(metadata: grpc.aio.Metadata | None) -> str:
    """Return the request's id in the trailing metadata of a call; empty if it has none."""
    return next((str(value) for key, value in metadata or () if key == REQUEST_ID), "")


def _failed(details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
