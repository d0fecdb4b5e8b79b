"""What happens around each call, composed once for each method. This module alone states the order."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, Final

import grpc
import structlog

from billing_grpc.server.auth.principals_file import PrincipalDirectory
from billing_grpc.server.call import RequestContext, Rpc
from billing_grpc.server.calls.access_log import AccessLog
from billing_grpc.server.calls.authentication import Authentication
from billing_grpc.server.calls.call_metrics import CallMetrics
from billing_grpc.server.calls.call_span import CallSpan
from billing_grpc.server.calls.call_status import OK, code_of
from billing_grpc.server.calls.concurrency_limit import ConcurrencyLimit
from billing_grpc.server.calls.error_translation import answer_error
from billing_grpc.server.calls.hooks import Answer, Behaviour, Handler, Hooks
from billing_grpc.server.calls.late_reading import LateReading
from billing_grpc.server.calls.request_id import RequestId
from billing_grpc.server.calls.unknown_method import UnknownMethod, no_answer
from billing_grpc.server.settings.limits import Limits
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.spans import Tracing

log = structlog.stdlib.get_logger(__name__)


class Methods:
    """Collects the handlers of services; the generated `add_..._to_server` functions take it for a server.

    Attributes:
        handlers: the handler of each method, by its full name as in `/package.Service/Method`.
    """

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, "Handler"]) -> None:
        """Add the handlers of a service by their names in the service; each gets the request and the `RequestContext`."""
        self.handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignore the same handlers in the form that a server of gRPC looks up."""


class Chain(grpc.GenericRpcHandler):
    """Answers the calls of all methods, with the same behaviours in the same order around each.

    Args:
        methods: the methods to answer.
        principals: the known principals.
        local_admin: whether a caller on this machine is the principal `local`.
        limits: the limits of calls and times.
        metrics: where calls are counted.
        tracing: makes the spans of calls; `None` if traces are off.
        client_authorities: returns the authorities that sign clients' certificates now, in PEM.
    """

    def __init__(
        self,
        methods: Methods,
        principals: PrincipalDirectory,
        *,
        local_admin: bool,
        limits: Limits,
        metrics: Metrics,
        tracing: Tracing | None = None,
        client_authorities: Callable[[], bytes] = bytes,
    ) -> None:
        # These start first and end last: with the status that the caller got.
        self._outer: Final[list[Behaviour]] = [
            # First, so that every log line of the call bears the id.
            RequestId(),
            *([] if tracing is None else [CallSpan(tracing)]),
            CallMetrics(metrics),
        ]
        # In between, an error becomes a status. So these end before the caller can know that its call has ended: then the
        # place of the call is free for its next one.
        self._inner: Final[list[Behaviour]] = [
            # Before authentication, so that refused calls are logged.
            AccessLog(),
            UnknownMethod(methods.handlers),
            Authentication(principals, local_admin=local_admin, client_authorities=client_authorities),
            # After authentication, so that unauthenticated calls take no place from others.
            ConcurrencyLimit(limits.max_concurrent_calls, limits.max_watchers),
        ]
        # Last: no byte of a request is awaited, kept or parsed before the call is allowed.
        reading = LateReading(limits.request_timeout, limits.open_request_timeout)
        self._known: Final = {
            method: self._composed(method, reading.for_method(method, handler), handler)
            for method, handler in methods.handlers.items()
        }

    @property
    def methods(self) -> AbstractSet[str]:
        """Return the full names of the known methods."""
        return self._known.keys()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler":
        """Return the handler of a call."""
        method = handler_call_details.method
        return self._known.get(method) or self._composed(method, no_answer)

    def _composed(self, method: str, answer: Answer, handler: "Handler | None" = None) -> "Handler":
        outer, inner = _hooks(self._outer, method), _hooks(self._inner, method)
        around, outside = (*outer, *inner), len(outer)

        async def serve(_: object, rpc: "Rpc") -> Any:
            call = RequestContext(rpc, method, tuple(rpc.invocation_metadata() or ()))
            begun: list[Hooks] = []
            code = OK
            try:
                for hooks in around:
                    hooks.start(call)
                    begun.append(hooks)
                return await answer(call)
            except BaseException as error:  # noqa: BLE001 - `answer_error` always raises
                _end(begun, outside, call, code_of(error, rpc))
                try:
                    await answer_error(call, error)
                except BaseException as answered:
                    code = code_of(answered, rpc)
                    raise
            finally:
                _end(begun, 0, call, code)

        # Handlers of a request stream, so that the request is read late; on the wire, one request looks the same.
        if handler is not None and not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(serve)
        return grpc.stream_stream_rpc_method_handler(
            serve, None, None if handler is None else handler.response_serializer
        )


def _hooks(behaviours: Sequence[Behaviour], method: str) -> list[Hooks]:
    return [hooks for each in behaviours if (hooks := each.for_method(method)) is not None]


def _end(begun: list[Hooks], left: int, call: RequestContext, code: str) -> None:
    """End the behaviours that began last, newest first, until so many are left."""
    while len(begun) > left:
        try:
            begun.pop().end(call, code)
        except Exception:
            # The others must still end: one of them frees the call's place. It may be the log that fails.
            with suppress(Exception):
                log.exception("the end of a call failed", method=call.method)
