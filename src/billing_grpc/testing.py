"""Helpers for tests, ours and our users': a repository in memory, and a real server in a context."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from billing_grpc.addresses import Address, TcpAddress
from billing_grpc.extras import Extra
from billing_grpc.secret_keys import KeyList
from billing_grpc.storage.memory import InMemoryRepository
from billing_grpc.storage.repository import Repository

try:
    from billing_grpc.server.listener import AccessPolicy, RpcServer
    from billing_grpc.server.org_default import FixedOrgDefault, OrgDefault
    from billing_grpc.server.servicer import BillingModeService
    from billing_grpc.server.settings.limits import Limits
    from billing_grpc.server.telemetry.metrics import Metrics
except ModuleNotFoundError as error:
    if (error.name or "").startswith("billing_grpc"):
        raise
    raise ModuleNotFoundError(f"billing_grpc.testing {Extra.SERVER.needed}", name=error.name) from error

__all__ = ["InMemoryRepository", "running_server"]


@asynccontextmanager
async def running_server(
    repository: Repository,
    *,
    org_default: OrgDefault | str | None = None,
    keys: KeyList | None = None,
    storage_timeout: float = 1.0,
    metrics: Metrics | None = None,
    address: Address | None = None,
    access_policy: AccessPolicy | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[str]:
    """Run a real server over a repository; yield the `host:port` or `unix:/path` to dial.

    By default it listens in plain text on a free loopback port, and every caller is the principal `local`.
    """
    published = FixedOrgDefault(org_default) if org_default is None or isinstance(org_default, str) else org_default
    metrics = metrics or Metrics()
    servicer = BillingModeService(repository, published.current, keys or KeyList(), storage_timeout, metrics)
    server = RpcServer(
        servicer, access_policy=access_policy or AccessPolicy(local_admin=True), limits=limits, metrics=metrics
    )
    try:
        (bound,) = await server.start([address or TcpAddress("127.0.0.1", 0)])
        yield bound.target if isinstance(bound, TcpAddress) else str(bound)
    finally:
        await server.stop(grace=storage_timeout)
