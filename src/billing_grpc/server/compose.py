"""The composition root: builds each part of the server from the settings."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from billing_grpc import __version__
from billing_grpc.addresses import TcpAddress
from billing_grpc.errors import ListenError, SettingsError
from billing_grpc.secret_keys import KeyList
from billing_grpc.server import demo
from billing_grpc.server.auth.principals import Principals
from billing_grpc.server.auth.principals_file import FixedPrincipals, PrincipalDirectory, PrincipalsFile
from billing_grpc.server.listener import AccessPolicy, RpcServer
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.server.org_default import FileOrgDefault, FixedOrgDefault, OrgDefault
from billing_grpc.server.processes.stop_signals import StopSignals
from billing_grpc.server.servicer import BillingModeService
from billing_grpc.server.settings.config import Settings
from billing_grpc.server.telemetry import metrics_port
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.observed_repository import observed
from billing_grpc.server.telemetry.spans import Tracing
from billing_grpc.storage import migrations
from billing_grpc.storage.embedded import EmbeddedPostgres, default_directory
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.storage.repository import Repository

log = structlog.stdlib.get_logger(__name__)


@contextmanager
def database(settings: Settings, signals: StopSignals) -> Iterator[tuple[str, bool]]:
    """Yield the database's URL and whether it is the embedded one, which this starts, migrates and fills.

    Raises:
        StartupError: the embedded database cannot start; the message names the cause and the remedy.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), False
        return
    directory = settings.data_dir or default_directory(_home())
    log.info("no DATABASE_URL: starting the embedded database", directory=str(directory))
    embedded = EmbeddedPostgres(directory)
    signals.at_forced_exit(embedded.stop_at_once)
    with embedded:
        try:
            migrations.up(embedded.url)
            migrations.run_script(embedded.url, migrations.grants())
            migrations.run_script(embedded.url, demo.SQL)
            # The service's role, as in production: few rights, and the change log records the callers that it names.
            yield embedded.url_as(migrations.SERVICE_ROLE), True
        finally:
            signals.ending()


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        remedy = "BILLING_GRPC_DATA_DIR: name the embedded database's folder: this user has no home"
        raise SettingsError([remedy]) from error


def access_policy(settings: Settings) -> AccessPolicy:
    """Return who may call this server; the settings have checked the files that it reads."""
    principals: PrincipalDirectory = FixedPrincipals(Principals({}, {}, {}))
    if settings.tokens_file is not None:
        principals = PrincipalsFile(settings.tokens_file)
    tls = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    return AccessPolicy(principals, settings.local_admin, tls, settings.unix_mode)


def key_list(settings: Settings) -> KeyList:
    """Return the vendor keys that this server blocks."""
    return KeyList(settings.extra_blocked_keys, name_set=settings.blocked_keys)


def org_default(settings: Settings) -> OrgDefault:
    """Return the organisation's default, from its file or its setting."""
    if settings.org_default_file is not None:
        return FileOrgDefault(settings.org_default_file)
    return FixedOrgDefault(settings.org_default)


@asynccontextmanager
async def tracing(settings: Settings, metrics: Metrics) -> AsyncIterator[Tracing | None]:
    """Yield what makes spans, which are sent until the context ends; `None` if traces are off."""
    if settings.traces_endpoint is None:
        yield None
        return
    # This module needs an optional package; the settings have checked that it is installed.
    exporting = import_module("billing_grpc.server.telemetry.trace_export").exporting
    async with exporting(settings.traces_endpoint, settings.traces_sample, __version__, metrics) as made:
        yield made


@asynccontextmanager
async def repository(
    settings: Settings, database_url: str, metrics: Metrics, tracing: Tracing | None
) -> AsyncIterator[Repository]:
    """Yield the Postgres repository, its operations observed by metrics and spans."""
    async with PostgresRepository.opened(
        database_url, longest_budget=settings.storage_timeout, size=settings.database_connections
    ) as postgres:
        metrics.gauges.observe_pool(postgres.pool_stats)
        metrics.gauges.observe_database(lambda: postgres.available)
        yield observed(postgres, metrics, tracing)


def rpc_server(
    settings: Settings,
    repository: Repository,
    org_default: OrgDefault,
    access_policy: AccessPolicy,
    *,
    keys: KeyList,
    metrics: Metrics,
    tracing: Tracing | None,
    shared_ports: bool,
) -> RpcServer:
    """Return the gRPC server, which does not listen yet; with `shared_ports` other servers may listen beside it."""
    metrics.show_catalogue(keys.catalogue)
    servicer = BillingModeService(repository, org_default.current, keys, settings.storage_timeout, metrics)
    return RpcServer(
        servicer,
        access_policy=access_policy,
        limits=settings.limits(),
        reflection_on=settings.reflection,
        shared_ports=shared_ports,
        metrics=metrics,
        tracing=tracing,
    )


@contextmanager
def exposed_metrics(address: TcpAddress, registry: CollectorRegistry) -> Iterator[None]:
    """Expose a registry on an address while the context lasts.

    Raises:
        ListenError: the address is taken or cannot be used.
    """
    with ExitStack() as stack:
        try:
            port = stack.enter_context(metrics_port.exposed(address, registry))
        except OSError as error:
            remedy = "name another in BILLING_GRPC_METRICS_LISTEN, or off"
            raise ListenError(f"cannot expose metrics on {address}: {error.strerror}; {remedy}") from error
        log.info("metrics exposed", address=str(replace(address, port=port)))
        yield
