"""Names every call: as the caller did in `x-request-id`, or anew; the name goes back with the answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from billing_grpc.server.call import HEADER, RequestContext, current_request, request_id
from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild


class RequestId(grpc.aio.ServerInterceptor):
    """Outside of everything else, so that whatever is logged or recorded about a call bears its name."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The method's handler, for a call that has a name."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        given = [value for key, value in handler_call_details.invocation_metadata or () if key == HEADER]

        @asynccontextmanager
        async def named(context: "Context") -> AsyncIterator[None]:
            request = RequestContext(request_id(given))
            current_request.set(request)
            context.set_trailing_metadata(((HEADER, request.request_id),))
            yield

        return rebuild(handler, named)
