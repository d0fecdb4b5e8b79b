"""Names every call: as the caller did in `x-request-id`, or anew; the name goes back with the answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild
from billing_grpc.server.request_id import HEADER, current_request_id, name_request


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
            name = name_request(given)
            current_request_id.set(name)
            context.set_trailing_metadata(((HEADER, name),))
            yield

        return rebuild(handler, named)
