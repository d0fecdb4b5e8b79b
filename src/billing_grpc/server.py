"""The composition root: builds everything from the settings, serves, drains and stops."""

import asyncio
import contextlib
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import start_http_server

from billing_grpc import __version__, demo, logs, migrations
from billing_grpc.addresses import Address, TcpAddress
from billing_grpc.config import Settings
from billing_grpc.credentials import Principals
from billing_grpc.embedded import EmbeddedPostgres, default_directory
from billing_grpc.errors import ListenError, StorageError
from billing_grpc.metrics import Metrics
from billing_grpc.observed_repository import ObservedRepository
from billing_grpc.org_default import FileOrgDefault, FixedOrgDefault, OrgDefault
from billing_grpc.postgres import PostgresRepository
from billing_grpc.principals_file import FixedPrincipals, PrincipalDirectory, PrincipalsFile
from billing_grpc.repository import Repository
from billing_grpc.rpc_server import Entrance, RpcServer
from billing_grpc.secrets import KeyList
from billing_grpc.servicer import BillingModeService
from billing_grpc.tls import TlsFiles
from billing_grpc.tracing import Tracing

log = structlog.stdlib.get_logger(__name__)

_EXIT_TERMINATED: Final = 128 + signal.SIGTERM

_DRAIN_MARGIN: Final = 0.5
"""Seconds beyond the storage timeout that a running call gets to finish."""
_REFRESH_EVERY: Final = 1.0


def run(settings: Settings, say: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM; `say` gets the lines for standard output.

    Raises:
        StartupError: the server cannot start; says why and what to do.
    """
    logs.configure(settings.log_format, settings.log_level)
    entrance = _entrance(settings)
    # Until the loop has its own handlers, a SIGTERM unwinds like an exit: it must not leave an embedded server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_EXIT_TERMINATED))
    with _database(settings) as (database_url, embedded):
        asyncio.run(_serve(settings, entrance, database_url, say, hints=embedded))


@contextmanager
def _database(settings: Settings) -> Iterator[tuple[str, bool]]:
    """The database to use and whether it is the embedded one, which is then started, migrated and filled."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), False
        return
    directory = settings.data_dir or default_directory(Path.home())
    log.info("no DATABASE_URL: starting the embedded database", directory=str(directory))
    with EmbeddedPostgres(directory) as embedded:
        migrations.up(embedded.url)
        migrations.run_script(embedded.url, migrations.grants())
        migrations.run_script(embedded.url, demo.SQL)
        # As in production: with the service's few rights, and so under the name that the change log believes.
        yield embedded.url_as(migrations.SERVICE_ROLE), True


async def _serve(
    settings: Settings, entrance: Entrance, database_url: str, say: Callable[[str], None], *, hints: bool
) -> None:
    stopping = asyncio.Event()
    org_default = _org_default(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, org_default, entrance)
    metrics = Metrics(__version__, version("grpcio"))
    async with AsyncExitStack() as stack:
        tracing = await _tracing(settings, metrics, stack)
        postgres = await stack.enter_async_context(
            PostgresRepository.opened(database_url, longest_budget=settings.storage_timeout)
        )
        repository = ObservedRepository(postgres, metrics, tracing)
        metrics.observe_pool(postgres.pool_stats)
        metrics.observe_database(lambda: repository.database_answers)
        await stack.enter_async_context(_refreshing(metrics))
        servicer = BillingModeService(
            repository, org_default.current, KeyList(settings.extra_blocked_keys), settings.storage_timeout, metrics
        )
        if settings.metrics_listen is not None:
            stack.enter_context(_metrics_port(settings.metrics_listen, metrics))
        grace = settings.storage_timeout + _DRAIN_MARGIN
        server = RpcServer(
            servicer,
            entrance=entrance,
            limits=settings.limits(),
            reflection_on=settings.reflection,
            metrics=metrics,
            tracing=tracing,
        )
        bound = await stack.enter_async_context(_listening(server, settings.listen, grace))
        for address in bound:
            say(f"listening on {address}")
        if hints:
            say(demo.hints(bound[0]))
        log.info("serving", version=__version__, addresses=[str(address) for address in bound])
        looking = asyncio.create_task(_say_whether_ready(repository, settings.storage_timeout))
        # Never cancelled: a server whose wait was cut off cannot be stopped any more.
        ended, told = asyncio.create_task(server.ended()), asyncio.create_task(stopping.wait())
        await asyncio.wait((ended, told), return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            # A process without listeners looks alive to whoever watches it; only its end brings a new one.
            told.cancel()
            # The name of what ended it and no more: its text may hold what a caller sent.
            error = ended.exception()
            log.error("the gRPC server ended by itself", error=None if error is None else type(error).__name__)
            raise ListenError("the gRPC server ended by itself: nothing listens any more; start it again")
        log.info("stopping")
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
    log.info("stopped")
    # An embedded database stops next: an impatient second Ctrl-C must not leave it behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


@asynccontextmanager
async def _listening(server: RpcServer, addresses: tuple[Address, ...], grace: float) -> AsyncIterator[list[Address]]:
    try:
        yield await server.start(addresses)
    finally:
        await server.stop(grace)


async def _tracing(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> Tracing | None:
    """Tracing, when it is configured; its spans are sent until the stack is left."""
    if settings.traces_endpoint is None:
        return None
    # Needs what is not always installed; the settings were found to be right when they were read.
    exporting = import_module("billing_grpc.trace_export").exporting
    sending = exporting(settings.traces_endpoint, settings.traces_sample, __version__, metrics)
    tracing: Tracing = await stack.enter_async_context(sending)
    return tracing


@asynccontextmanager
async def _refreshing(metrics: Metrics) -> AsyncIterator[None]:
    """Gauges that are never older than a second."""

    async def refresh() -> None:
        while True:
            metrics.refresh()
            await asyncio.sleep(_REFRESH_EVERY)

    refreshing = asyncio.create_task(refresh())
    try:
        yield
    finally:
        refreshing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await refreshing


@contextmanager
def _metrics_port(address: TcpAddress, metrics: Metrics) -> Iterator[None]:
    try:
        server, thread = start_http_server(address.port, address.host, metrics.registry)
    except OSError as error:
        remedy = "name another in BILLING_GRPC_METRICS_LISTEN, or off"
        raise ListenError(f"cannot expose metrics on {address}: {error.strerror}; {remedy}") from error
    log.info("metrics exposed", address=str(replace(address, port=server.server_port)))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entrance(settings: Settings) -> Entrance:
    """Who is let in; the files were found to be right when the settings were read."""
    principals: PrincipalDirectory = FixedPrincipals(Principals({}, {}, {}))
    if settings.tokens_file is not None:
        principals = PrincipalsFile(settings.tokens_file)
    tls = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    return Entrance(principals, settings.local_admin, tls, settings.unix_mode)


def _reload(org_default: OrgDefault, entrance: Entrance) -> None:
    """On SIGHUP: everything that is read from files, changed or not."""
    org_default.reload()
    entrance.principals.reload()
    if entrance.tls is not None:
        entrance.tls.reload()


def _org_default(settings: Settings) -> OrgDefault:
    if settings.org_default_file is not None:
        return FileOrgDefault(settings.org_default_file)
    return FixedOrgDefault(settings.org_default)


async def _say_whether_ready(repository: Repository, budget: float) -> None:
    try:
        await repository.load_override(str(uuid.UUID(int=0)), budget=budget)
    except StorageError as error:
        log.warning("database not ready: decisions are closed until it is", reason=error.reason, remedy=error.message)
    else:
        log.info("database ready")
