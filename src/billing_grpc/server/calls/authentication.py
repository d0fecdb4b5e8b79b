"""Authenticates the caller and checks that its role may call the method; the default is to refuse."""

import datetime as dt
from collections.abc import Callable
from typing import Final

import grpc

from billing_grpc.errors import PermissionDenied, Unauthenticated
from billing_grpc.model import Principal
from billing_grpc.server.auth import roles
from billing_grpc.server.auth.client_certificate import ClientCertificate
from billing_grpc.server.auth.principals import LOCAL, bearer_token
from billing_grpc.server.auth.principals_file import PrincipalDirectory
from billing_grpc.server.call import RequestContext, Rpc
from billing_grpc.server.calls.hooks import Hooks
from billing_grpc.wire.metadata import AUTHORIZATION

_CERTIFICATE: Final = "x509_pem_cert"
_CERTIFICATE_CHAIN: Final = "x509_pem_cert_chain"
_LOCAL_PEERS: Final = ("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")


class Authentication(Hooks):
    """Finds the principal of each call and checks its role.

    The first of these that applies decides alone:

    1. The `authorization` header.
    2. A client certificate that gRPC has verified. If it names no principal, the call is refused, on this machine too. Its
       validity is checked at every call, because gRPC checks it once and then resumes the session and keeps the connection.
    3. Under local admin, a caller on this machine is the principal `local`.

    Args:
        principals: the known principals.
        local_admin: whether a caller on this machine is the principal `local`.
        client_authorities: returns the authorities that sign clients' certificates now, in PEM.
    """

    def __init__(
        self, principals: PrincipalDirectory, *, local_admin: bool, client_authorities: Callable[[], bytes] = bytes
    ) -> None:
        self._principals = principals
        self._local_admin = local_admin
        self._client_authorities = client_authorities

    def for_method(self, method: str) -> Hooks | None:
        """Return itself, or `None` for a method that needs no principal."""
        return None if method in roles.OPEN else self

    def start(self, call: RequestContext) -> None:
        """Set the principal.

        Raises:
            grpc.aio.InternalError: the call has ended.
            Unauthenticated: the credentials name no principal.
            PermissionDenied: its role may not call the method.
        """
        principal = self._principal([value for key, value in call.metadata if key == AUTHORIZATION], call.rpc)
        if principal is None:
            raise Unauthenticated
        call.principal = principal
        if not roles.may_call(principal.role, call.method):
            raise PermissionDenied

    def _principal(self, headers: list[str | bytes], rpc: "Rpc") -> Principal | None:
        if headers:
            token = bearer_token(headers[0]) if len(headers) == 1 else None
            return None if token is None else self._principals.current().by_token(token)
        peer = rpc.auth_context()
        if certificate := b"".join(peer.get(_CERTIFICATE, ())):
            chain = b"".join(peer.get(_CERTIFICATE_CHAIN, ()))
            read = ClientCertificate.read(certificate, chain, self._client_authorities())
            if read is None or not read.holds(dt.datetime.now(dt.UTC)):
                return None
            return self._principals.current().by_certificate(read.uris, read.dns_names)
        if not self._local_admin:
            return None
        if not (address := rpc.peer()):
            # gRPC forgets the peer of a call that has ended at its deadline. Its caller takes no answer any more.
            raise grpc.aio.InternalError("the call has ended")
        return LOCAL if address.startswith(_LOCAL_PEERS) else None
