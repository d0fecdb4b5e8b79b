"""The gRPC server: the billing service, health and reflection, and the addresses that it listens on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.addresses import Address, Security, UnixAddress
from billing_grpc.errors import ListenError
from billing_grpc.server import health, reflection
from billing_grpc.server.auth.principals import Principals
from billing_grpc.server.auth.principals_file import FixedPrincipals, PrincipalDirectory
from billing_grpc.server.calls.chain import Chain, Methods
from billing_grpc.server.net.ports import require_free
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.server.servicer import BillingModeService
from billing_grpc.server.settings.limits import Limits
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.spans import Tracing

SERVICE_NAME: Final[str] = service_pb.DESCRIPTOR.services_by_name["BillingModeService"].full_name
ADMINISTRATION: Final = f"{SERVICE_NAME}/administration"
"""The health name of administration; the other names say whether decisions are answered."""

_SPARE_CALLS: Final = 4096
"""How many calls gRPC admits beyond the limits: health checks, calls that are about to be refused, and calls whose answer
the caller never takes. gRPC counts the last until the connection ends, and each holds about 24 KB."""


def _admitted_calls(limits: Limits) -> int:
    return limits.max_concurrent_calls + limits.max_watchers + _SPARE_CALLS


def _options(limits: Limits, *, shared_ports: bool) -> tuple[tuple[str, int], ...]:
    # gRPC ignores a misspelt option silently: `test_limits.py` and `test_hostile_requests.py` test the effect of each.
    return (
        # By default several servers may share a port, silently; a taken port must be an error.
        ("grpc.so_reuseport", int(shared_ports)),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_header_bytes),
        ("grpc.max_concurrent_streams", limits.max_streams),
        # The limit of streams then includes calls that have ended and are not yet cleaned up, so a client that cancels its
        # calls as fast as it opens them (CVE-2023-44487) gains nothing. The second option lets an honest client open its
        # next call as soon as it has an answer; without it more than a quarter of such calls were refused.
        ("grpc.http.overload_protection", 1),
        ("grpc.http2.max_deallocating_streams", limits.max_streams),
        # How many calls may wait until the event loop takes them. By default gRPC cancels calls by chance from 1000 on; a
        # caller cannot tell that from its own cancellation, and does not try again.
        ("grpc.server.max_pending_requests", _admitted_calls(limits)),
        ("grpc.server.max_pending_requests_hard_limit", _admitted_calls(limits)),
        ("grpc.max_connection_idle_ms", _milliseconds(limits.max_connection_idle)),
        ("grpc.max_connection_age_ms", _milliseconds(limits.max_connection_age)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(limits.max_connection_age_grace)),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(limits.min_ping_interval)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.handshake_timeout)),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
    )


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Who may call the server, and how the server authenticates them.

    Attributes:
        principals: the known principals.
        local_admin: whether a caller on this machine is the principal `local`.
        tls: the certificates of `tls://` and `mtls://` listeners.
        socket_mode: the file mode of Unix sockets.
    """

    principals: PrincipalDirectory = field(default_factory=lambda: FixedPrincipals(Principals({}, {}, {})))
    local_admin: bool = False
    tls: TlsFiles | None = None
    socket_mode: int = 0o600


class RpcServer:
    """One gRPC server from start to stop.

    Args:
        servicer: answers the billing RPCs.
        access_policy: who may call; the default `AccessPolicy` admits no caller.
        limits: the limits of calls, connections, sizes and times.
        reflection_on: whether the contract can be listed over the wire.
        shared_ports: whether other servers may listen on the same ports, which a parent process then holds.
        metrics: where calls are counted.
        tracing: makes the spans of calls; `None` if traces are off.
    """

    def __init__(
        self,
        servicer: BillingModeService,
        *,
        access_policy: AccessPolicy,
        limits: Limits | None = None,
        reflection_on: bool = True,
        shared_ports: bool = False,
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        limits = limits or Limits()
        self._access_policy = access_policy
        self._shared_ports = shared_ports
        self._health = health.HealthServicer()
        methods = Methods()
        # The types of the generated function know no other context than gRPC's.
        add_billing: Any = service_grpc.add_BillingModeServiceServicer_to_server
        add_billing(servicer, methods)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, methods)
        if reflection_on:
            reflection.add_to(methods, [SERVICE_NAME, health.SERVICE_NAME])
        chain = Chain(
            methods,
            access_policy.principals,
            local_admin=access_policy.local_admin,
            limits=limits,
            metrics=metrics or Metrics(),
            tracing=tracing,
            client_authorities=bytes if access_policy.tls is None else access_policy.tls.client_authorities,
        )
        # No interceptor: gRPC would build a chain of coroutines for every call.
        self._server = grpc.aio.server(
            handlers=[chain],
            options=_options(limits, shared_ports=shared_ports),
            maximum_concurrent_rpcs=_admitted_calls(limits),
        )

    async def start(self, addresses: Sequence[Address]) -> list[Address]:
        """Listen and serve; return the addresses with their real ports.

        Raises:
            ListenError: an address is taken or cannot be used; names it.
        """
        bound = [self._listen(address) for address in addresses]
        for name in ("", SERVICE_NAME):
            self._health.set(name, serving=True)
        await self._server.start()
        return bound

    def report_administration(self, *, works: bool) -> None:
        """Set the health of administration; its name is unknown until the first call."""
        self._health.set(ADMINISTRATION, serving=works)

    def drain(self) -> None:
        """Set the health of every name to NOT_SERVING, for good; calls are still answered."""
        self._health.drain()

    async def stop(self, grace: float) -> None:
        """Drain, refuse new calls, give running calls `grace` seconds to finish, then end them."""
        self.drain()
        self._health.end()
        await self._server.stop(grace)

    async def ended(self) -> None:
        """Return when the server has ended, for whatever reason. Do not cancel this: `stop` would fail afterwards."""
        await self._server.wait_for_termination()

    def _listen(self, address: Address) -> Address:
        if not self._shared_ports:
            require_free(address)
        if isinstance(address, UnixAddress):
            self._listen_unix(address)
            return address
        return replace(address, port=self._bind(address.target, address.security))

    def _listen_unix(self, address: UnixAddress) -> None:
        # The mask comes first and the mode second, so that no other user can connect in between.
        mask = os.umask(0o177)
        try:
            self._bind(str(address), "plain")
        finally:
            os.umask(mask)
        Path(address.path).chmod(self._access_policy.socket_mode)

    def _bind(self, target: str, security: Security) -> int:
        try:
            if security == "plain":
                return self._server.add_insecure_port(target)
            if self._access_policy.tls is None:
                raise ListenError(f"cannot listen on {security}://{target}: it needs a certificate and its key")
            return self._server.add_secure_port(target, self._access_policy.tls.credentials(mutual=security == "mtls"))
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {target}: it is taken, or not an address of this machine") from error
