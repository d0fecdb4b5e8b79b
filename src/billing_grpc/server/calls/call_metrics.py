"""Counts calls: which method, how it ended, how long it took, and how many are in progress."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import grpc

from billing_grpc.server.auth import roles
from billing_grpc.server.calls.call_status import OK, code_of
from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild
from billing_grpc.server.telemetry.metrics import Metrics


class CallMetrics(grpc.aio.ServerInterceptor):
    """Outside of the translation of errors, so that what is counted is what the caller was told.

    Args:
        metrics: where calls are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The method's handler, counted when it has run."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        is_open = method in roles.OPEN
        # How long somebody watches says nothing about this server.
        watched = is_open and handler.response_streaming

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
