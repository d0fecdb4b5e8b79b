"""Answers calls of unknown methods, so that they are logged and counted like any other call."""

import grpc

from billing_grpc.server.calls.rebuild import Context, Continuation, Handler


class UnknownMethod(grpc.aio.ServerInterceptor):
    """Adds a handler for unknown methods: it answers UNIMPLEMENTED and reads neither the request nor the caller."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Return the method's handler, or a handler that refuses."""
        # A handler of streams in both directions answers a call of any kind.
        return await continuation(handler_call_details) or grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(requests: object, context: "Context") -> None:
    del requests
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
