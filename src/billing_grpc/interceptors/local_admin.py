"""Lets everybody who reaches this server in as the principal `local`: for a laptop (contract, section 7)."""

from typing import Final

import grpc

from billing_grpc.caller import current_principal
from billing_grpc.interceptors._rebuild import Continuation, Handler
from billing_grpc.model import Principal

LOCAL: Final = Principal(name="local", role="admin")


class LocalAdmin(grpc.aio.ServerInterceptor):
    """Names the caller `local`. Sound only because such a server listens on nothing but loopback and Unix sockets."""

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """The method's handler; the principal stays set for this call, which runs in a context of its own."""
        current_principal.set(LOCAL)
        return await continuation(handler_call_details)
