"""Counts calls by method and status, times them, and counts those in progress."""

import time

from billing_grpc.server.auth import roles
from billing_grpc.server.call import RequestContext
from billing_grpc.server.calls.hooks import Hooks
from billing_grpc.server.telemetry.metrics import Metrics


class CallMetrics:
    """Counts each call with the status that its caller gets.

    Args:
        metrics: where calls are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def for_method(self, method: str) -> Hooks:
        """Return what counts the calls of this method; health and reflection do not count as in progress."""
        if method in roles.OPEN:
            return _Ended(self._metrics, method)
        return _InProgress(self._metrics, method)


class _Ended(Hooks):
    def __init__(self, metrics: Metrics, method: str) -> None:
        # The duration of a stream of health or reflection says nothing about this server.
        self._count = metrics.counter_of_calls(method, timed=method not in roles.OPEN_STREAMS)

    def end(self, call: RequestContext, code: str) -> None:
        self._count(code, time.perf_counter() - call.started)


class _InProgress(_Ended):
    def __init__(self, metrics: Metrics, method: str) -> None:
        super().__init__(metrics, method)
        self._gauges = metrics.gauges

    def start(self, call: RequestContext) -> None:
        del call
        self._gauges.call_begun()

    def end(self, call: RequestContext, code: str) -> None:
        self._gauges.call_ended()
        super().end(call, code)
