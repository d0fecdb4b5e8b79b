"""Counts calls by method and status, times them, and counts those in progress."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import grpc

from billing_grpc.server.auth import roles
from billing_grpc.server.calls.call_status import OK, code_of
from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild
from billing_grpc.server.telemetry.metrics import Metrics


class CallMetrics(grpc.aio.ServerInterceptor):
    """Counts each call with the status that its caller gets.

    Args:
        metrics: where calls are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Return the method's handler, which then counts each call at its end."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        is_open = method in roles.OPEN
        # The duration of a stream of health or reflection says nothing about this server.
        watched = handler_call_details.method in roles.OPEN_STREAMS

        @asynccontextmanager
        async def counted(context: "Context") -> AsyncIterator[None]:
            started, code = time.perf_counter(), OK
            with nullcontext() if is_open else self._metrics.call_in_flight():
                try:
                    yield
                except BaseException as error:
                    code = code_of(error, context)
                    raise
                finally:
                    self._metrics.count_call(method, code, None if watched else time.perf_counter() - started)

        return rebuild(handler, counted)
