"""What happens around every call. The order, outermost first, is stated here and nowhere else."""

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
    """The interceptors of a server.

    A call has a name, and its place in a trace, before anything is said about it. It is counted as its caller sees it end.
    Errors are translated outside of all that can fail, so that no other
    interceptor's failure can leak. The log stands outside of authentication: a refusal leaves a trace. Who is not known does
    not get as far as being counted, so that a flood of strangers takes no place from those who are. The request is read
    last: nobody's bytes are waited for, kept or parsed before it is clear that the call may run.
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
