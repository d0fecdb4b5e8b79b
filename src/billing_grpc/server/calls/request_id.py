"""Gives every request its id, from `x-request-id` or a new one, and returns it in the trailing metadata."""

from billing_grpc.server.call import RequestContext, current_request_id, request_id
from billing_grpc.server.calls.hooks import Hooks
from billing_grpc.wire.metadata import REQUEST_ID


class RequestId(Hooks):
    """Sets the id of each request, which every log line of the request then bears."""

    def for_method(self, method: str) -> Hooks:
        """Return itself: every method has the same."""
        del method
        return self

    def start(self, call: RequestContext) -> None:
        """Set the id."""
        call.request_id = request_id([value for key, value in call.metadata if key == REQUEST_ID])
        current_request_id.set(call.request_id)
        call.rpc.set_trailing_metadata(((REQUEST_ID, call.request_id),))
