"""Every RPC over Connect, gRPC-Web and JSON, as the descriptors of the contract say it: a new RPC needs no line here."""

import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final, TypeAlias

import grpc
from connectrpc.code import Code
from connectrpc.codec import Codec
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.errors import FieldViolation, InvalidArgument, quoted
from billing_grpc.gateway.guard import MAX_BODY_BYTES
from billing_grpc.gateway.rpc_errors import of_call, of_status
from billing_grpc.gateway.upstream import Caller, LetIn, Upstream, path, request_id
from billing_grpc.wire.metadata import REQUEST_ID
from billing_grpc.wire.statuses import error_to_status

log = logging.getLogger(__name__)

SERVICES: Final[tuple[ServiceDescriptor, ...]] = (
    service_pb.DESCRIPTOR.services_by_name["BillingModeService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)
"""The services that the gateway offers. Reflection is left out: its one method needs HTTP/2 streams in both directions."""

_GRPC: Final = "application/grpc"
_UNKNOWN_FIELD: Final = re.compile(r'has no field named "(.*?)"')
_Context: TypeAlias = RequestContext[Message, Message]


def applications(upstream: Upstream, let_in: LetIn) -> dict[str, ASGIApp]:
    """Return an ASGI application for each service, by its path."""
    return {f"/{each.full_name}": _without_grpc(_Service(each, upstream, let_in)) for each in SERVICES}


def _without_grpc(app: ASGIApp) -> ASGIApp:
    """Return the application without gRPC itself, whose trailers the HTTP server cannot send."""

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        kind = Headers(scope=scope).get("content-type", "").lower()
        if kind == _GRPC or kind.startswith((f"{_GRPC}+", f"{_GRPC};")):
            refusal = JSONResponse({"error": "the gateway speaks Connect and gRPC-Web: send gRPC to the server"}, 415)
            await refusal(scope, receive, send)
        else:
            await app(scope, receive, send)

    return refusing


class _Service(ConnectASGIApplication[None]):
    """The library's application for one service."""

    def __init__(self, service: ServiceDescriptor, upstream: Upstream, let_in: LetIn) -> None:
        json = google_protobuf_json_codec(ignore_unknown_fields=False)
        super().__init__(
            service=None,
            endpoints=lambda _: {path(method): _endpoint(method, upstream, let_in) for method in service.methods},
            codecs=(_Strict(google_protobuf_binary_codec()), _Strict(json)),
            read_max_bytes=MAX_BODY_BYTES,
        )
        self._name = service.full_name

    @property
    def path(self) -> str:
        return f"/{self._name}"


class _Strict(Codec[Any, Any]):
    """A codec that gives a message that it refuses the contract's reason.

    The codec of JSON also refuses fields that the contract does not have: with a misspelt `validateOnly` a call would write.
    """

    def __init__(self, codec: Codec[Any, Any]) -> None:
        self._codec = codec

    def name(self) -> str:
        return self._codec.name()

    def encode(self, message: Message) -> bytes:
        return self._codec.encode(message)

    def decode(self, data: bytes | bytearray, message_class: type[Message]) -> Message:
        try:
            decoded: Message = self._codec.decode(data, message_class)
        except Exception as error:  # the parsers raise errors of many kinds, and the library would send their texts
            raise of_status(error_to_status(_not_a_message(error))) from error
        return decoded


def _not_a_message(error: Exception) -> InvalidArgument:
    """Return the contract's error, without the parser's text: that may hold a secret that was sent by mistake."""
    unknown = _UNKNOWN_FIELD.search(str(error))
    why = "" if unknown is None else f": it has no field {quoted(unknown[1])}"
    return InvalidArgument("TEXT_INVALID", FieldViolation("request", f"is not a message of this method{why}"))


def _endpoint(method: MethodDescriptor, upstream: Upstream, let_in: LetIn) -> Any:
    """Return the library's endpoint for a method; the types of its two kinds are not public."""
    if method.client_streaming:
        # None of our services has such a method. A new one fails here, when the gateway starts, and not at its first call.
        raise NotImplementedError(f"{method.full_name}: a browser cannot stream requests")
    answer_type = GetMessageClass(method.output_type)

    async def once(request: Message, context: _Context) -> Message:
        with _errors(context):
            answer, sent_id = await upstream.call(
                method, request, answer_type, Caller.of(context.request_headers.getall, let_in), _seconds(context)
            )
        context.response_headers[REQUEST_ID] = sent_id
        return answer

    async def often(request: Message, context: _Context) -> AsyncIterator[Message]:
        answers = upstream.stream(
            method, request, answer_type, Caller.of(context.request_headers.getall, let_in), _seconds(context)
        )
        async with aclosing(answers):
            with _errors(context):
                async for answer in answers:
                    yield answer

    info = MethodInfo(
        name=method.name,
        service_name=method.containing_service.full_name,
        input=GetMessageClass(method.input_type),
        output=answer_type,
        idempotency_level=IdempotencyLevel.UNKNOWN,  # no call is a GET, so that no link makes one
        stream_type=StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY,
    )
    return Endpoint.server_stream(info, often) if method.server_streaming else Endpoint.unary(info, once)


def _seconds(context: _Context) -> float | None:
    return None if context.timeout_ms is None else context.timeout_ms / 1000


@contextmanager
def _errors(context: _Context) -> Iterator[None]:
    """Raise the error of Connect for an error of the call. The library would send the text of any other to the client."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if sent_id := request_id(error.trailing_metadata()):
            context.response_headers[REQUEST_ID] = sent_id
        raise of_call(error) from error
    except Exception as error:
        log.exception("the gateway failed in %s", context.method.name)
        raise ConnectError(Code.INTERNAL, "the gateway failed; its log says how") from error
