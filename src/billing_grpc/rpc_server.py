"""The gRPC server: the billing service, health and reflection on the addresses it was given."""

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from billing_grpc import interceptors
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.addresses import Address, TcpAddress, UnixAddress
from billing_grpc.errors import ListenError

SERVICE_NAME: Final[str] = service_pb.DESCRIPTOR.services_by_name["BillingModeService"].full_name
_REFLECTION_V1: Final = "grpc.reflection.v1.ServerReflection"
_PROBE_SECONDS: Final = 1.0

_OPTIONS: Final = (
    # By default several servers may share a port, silently; a taken port must be an error.
    ("grpc.so_reuseport", 0),
)


class RpcServer:
    """One gRPC server from start to stop.

    Args:
        servicer: answers the billing RPCs.
        reflection_on: whether the contract can be listed over the wire.
    """

    def __init__(self, servicer: service_grpc.BillingModeServiceServicer, *, reflection_on: bool = True) -> None:
        self._server = grpc.aio.server(interceptors=interceptors.in_order(), options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        service_grpc.add_BillingModeServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflection_on:
            self._add_reflection()

    async def start(self, addresses: Sequence[Address]) -> list[Address]:
        """Listens and serves; answers the addresses with their real ports.

        Raises:
            ListenError: an address is taken or cannot be used; names it.
        """
        bound = [self._listen(address) for address in addresses]
        await self._server.start()
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def stop(self, grace: float) -> None:
        """Says NOT_SERVING, takes no new calls, lets running ones finish for `grace` seconds, then ends them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)

    def _listen(self, address: Address) -> Address:
        if isinstance(address, UnixAddress):
            self._listen_unix(address)
            return address
        _require_free(address)
        port = self._bind(str(address))
        return TcpAddress(address.host, port)

    def _listen_unix(self, address: UnixAddress) -> None:
        # gRPC removes whatever stands at the path before it binds: a socket that somebody answers must not be stolen.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_SECONDS)
            try:
                probe.connect(address.path)
            except (FileNotFoundError, ConnectionRefusedError):
                pass  # nothing there, or nobody behind it
            except OSError as error:
                raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
            else:
                raise ListenError(f"cannot listen on {address}: another server answers there; stop it first")
        # Bound under a tight mask: no moment in which another user could connect.
        mask = os.umask(0o177)
        try:
            self._bind(str(address))
        finally:
            os.umask(mask)

    def _bind(self, address: str) -> int:
        try:
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {address}: it is taken, or not an address of this machine") from error

    def _add_reflection(self) -> None:
        names = [SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME, _REFLECTION_V1]
        servicer: Any = reflection.aio.ReflectionServicer(names)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self._server)
        # The messages of v1 are those of v1alpha; newer clients ask for v1 first.
        v1 = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        methods = {"ServerReflectionInfo": v1}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_REFLECTION_V1, methods),))


def _require_free(address: TcpAddress) -> None:
    """Refuses a name of which gRPC would bind only the addresses that happen to be free."""
    if address.port == 0:
        return
    try:
        targets = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
    for family, kind, protocol, _, target in targets:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(target)
            except OSError as error:
                # An address that this machine lacks (no IPv6, say) is no reason to refuse the others.
                if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                    raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
