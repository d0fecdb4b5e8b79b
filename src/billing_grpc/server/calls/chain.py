"""The interceptors of a server. This module alone states their order, outermost first."""

from collections.abc import Callable

import grpc

from billing_grpc.server.auth.principals_file import PrincipalDirectory
from billing_grpc.server.calls.access_log import AccessLog
from billing_grpc.server.calls.authentication import Authentication
from billing_grpc.server.calls.call_metrics import CallMetrics
from billing_grpc.server.calls.call_span import CallSpan
from billing_grpc.server.calls.concurrency_limit import ConcurrencyLimit
from billing_grpc.server.calls.error_translation import ErrorTranslation
from billing_grpc.server.calls.late_reading import LateReading
from billing_grpc.server.calls.request_id import RequestId
from billing_grpc.server.calls.unknown_method import UnknownMethod
from billing_grpc.server.settings.limits import Limits
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.spans import Tracing


def in_order(
    principals: PrincipalDirectory,
    *,
    local_admin: bool,
    limits: Limits,
    metrics: Metrics,
    tracing: Tracing | None = None,
    client_authorities: Callable[[], bytes] = bytes,
) -> list[grpc.aio.ServerInterceptor]:
    """Return the interceptors of a server, outermost first.

    - The request id and the span come first, so that every log line of the call bears them.
    - Metrics stand outside of error translation, so that they count the status that the caller sees.
    - Error translation stands outside of everything that can fail, so that no exception text reaches a caller.
    - The access log stands outside of authentication, so that refused calls are logged.
    - The concurrency limit stands inside of authentication, so that unauthenticated calls take no place from others.
    - The request is read last: no byte of it is awaited, kept or parsed before the call is allowed.
    """
    return [
        RequestId(),
        *([] if tracing is None else [CallSpan(tracing)]),
        CallMetrics(metrics),
        ErrorTranslation(),
        AccessLog(),
        UnknownMethod(),
        Authentication(principals, local_admin=local_admin, client_authorities=client_authorities),
        ConcurrencyLimit(limits.max_concurrent_calls, limits.max_watchers),
        LateReading(limits.request_timeout, limits.open_request_timeout),
    ]
