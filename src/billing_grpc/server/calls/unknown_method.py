"""Answers for methods that nobody serves, so that a call for one is named and logged like any other."""

import grpc

from billing_grpc.server.calls.rebuild import Context, Continuation, Handler


class UnknownMethod(grpc.aio.ServerInterceptor):
    """A handler where there is none: UNIMPLEMENTED, without a look at the request or the caller."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The method's handler, or one that refuses."""
        # A stream in both directions answers a client of any kind.
        return await continuation(handler_call_details) or grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(requests: object, context: "Context") -> None:
    del requests
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
