"""Gives every request its id, from `x-request-id` or a new one, and returns it in the trailing metadata."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from billing_grpc.server.call import HEADER, RequestContext, current_request, request_id
from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild


class RequestId(grpc.aio.ServerInterceptor):
    """Opens the context of each request; the outermost interceptor, so that every record of a request bears its id."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Return the method's handler, which then runs in a request context."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        given = [value for key, value in handler_call_details.invocation_metadata or () if key == HEADER]

        @asynccontextmanager
        async def in_context(context: "Context") -> AsyncIterator[None]:
            request = RequestContext(request_id(given))
            current_request.set(request)
            context.set_trailing_metadata(((HEADER, request.request_id),))
            yield

        return rebuild(handler, in_context)
