"""Who is calling, and whether they may: nothing passes that the table does not let pass."""

import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import grpc

from billing_grpc.errors import PermissionDenied, Unauthenticated
from billing_grpc.model import Principal
from billing_grpc.server.auth import roles
from billing_grpc.server.auth.client_certificate import ClientCertificate
from billing_grpc.server.auth.principals import LOCAL, bearer_token
from billing_grpc.server.auth.principals_file import PrincipalDirectory
from billing_grpc.server.call import current_request
from billing_grpc.server.calls.rebuild import Context, Continuation, Handler, rebuild

_HEADER: Final = "authorization"
_CERTIFICATE: Final = "x509_pem_cert"
_SENT_ALONG: Final = "x509_pem_cert_chain"
_HERE: Final = ("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")


class Authentication(grpc.aio.ServerInterceptor):
    """Names the caller and checks its role.

    A call that carries `authorization` is judged by it alone. Without, a client certificate that gRPC has verified decides,
    and decides alone: one that names nobody is nobody's, on this machine too. Its validity is judged at every call, because
    gRPC looks at it once and then resumes its session and keeps its connection. Without either, under local admin, a caller
    on this machine is `local`.

    Args:
        principals: who is known.
        local_admin: whether callers on this machine are the principal `local`.
        client_authorities: returns the authorities that sign clients' certificates now, in PEM.
    """

    def __init__(
        self, principals: PrincipalDirectory, *, local_admin: bool, client_authorities: Callable[[], bytes] = bytes
    ) -> None:
        self._principals = principals
        self._local_admin = local_admin
        self._client_authorities = client_authorities

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The method's handler, which then runs for callers that may."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method in roles.OPEN:
            return handler
        headers = [value for key, value in handler_call_details.invocation_metadata or () if key == _HEADER]

        @asynccontextmanager
        async def only_if_allowed(context: "Context") -> AsyncIterator[None]:
            principal = self._principal(headers, context)
            if principal is None:
                raise Unauthenticated
            current_request.get().principal = principal
            if not roles.may_call(principal.role, method):
                raise PermissionDenied
            yield

        return rebuild(handler, only_if_allowed)

    def _principal(self, headers: list[str | bytes], context: "Context") -> Principal | None:
        if headers:
            token = bearer_token(headers[0]) if len(headers) == 1 else None
            return None if token is None else self._principals.current().by_token(token)
        shown = context.auth_context()
        if certificate := b"".join(shown.get(_CERTIFICATE, ())):
            sent_along = b"".join(shown.get(_SENT_ALONG, ()))
            read = ClientCertificate.read(certificate, sent_along, self._client_authorities())
            if read is None or not read.holds(dt.datetime.now(dt.UTC)):
                return None
            return self._principals.current().by_certificate(read.uris, read.dns_names)
        if self._local_admin and context.peer().startswith(_HERE):
            return LOCAL
        return None
