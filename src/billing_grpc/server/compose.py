"""The composition root: builds everything from the settings, serves, drains and stops."""

import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry

from billing_grpc import __version__
from billing_grpc.addresses import Address, TcpAddress
from billing_grpc.errors import ListenError, SettingsError, StorageError
from billing_grpc.secret_keys import KeyList
from billing_grpc.server import demo
from billing_grpc.server.auth.principals import Principals
from billing_grpc.server.auth.principals_file import FixedPrincipals, PrincipalDirectory, PrincipalsFile
from billing_grpc.server.health import watch_administration
from billing_grpc.server.listener import Entrance, RpcServer
from billing_grpc.server.net.ports import reserved
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.server.org_default import FileOrgDefault, FixedOrgDefault, OrgDefault
from billing_grpc.server.processes.stop_signals import StopSignals, hang_ups
from billing_grpc.server.processes.supervisor import Orders, WorkerFailedError, Workers
from billing_grpc.server.servicer import BillingModeService
from billing_grpc.server.settings.config import Settings, environment_with
from billing_grpc.server.telemetry import logs, metrics_port
from billing_grpc.server.telemetry.metrics import Metrics, forget_process, multiprocess_registry
from billing_grpc.server.telemetry.observed_repository import ObservedRepository
from billing_grpc.server.telemetry.spans import Tracing
from billing_grpc.storage import migrations
from billing_grpc.storage.embedded import EmbeddedPostgres, default_directory
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.storage.repository import Repository

log = structlog.stdlib.get_logger(__name__)

_REFRESH_EVERY: Final = 1.0
_LAST_WORDS: Final = 0.2
"""Seconds in which the log's reader has to take a line when a second signal ends the process."""


def run(settings: Settings, say: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM; `say` gets the lines for standard output, and must not wait for their reader.

    Raises:
        StartupError: the server cannot start; says why and what to do.
    """
    logs.configure(settings.log_format, settings.log_level)
    signals = StopSignals()
    signals.take_along(lambda: logs.flush(_LAST_WORDS))
    with ExitStack() as stack:
        # What a failed start has to say in the log comes before what is said of it on standard error.
        stack.callback(logs.flush)
        database_url, embedded = stack.enter_context(_database(settings, signals))

        def announce(bound: Sequence[Address]) -> None:
            lines = [f"listening on {address}" for address in bound]
            say("\n".join([*lines, demo.hints(bound[0])] if embedded else lines))

        if settings.workers > 1:
            _run_workers(settings, database_url, signals, announce)
        else:
            asyncio.run(serve(settings, database_url, signals, announce))
        log.info("stopped")


@contextmanager
def _database(settings: Settings, signals: StopSignals) -> Iterator[tuple[str, bool]]:
    """The database to use and whether it is the embedded one, which is then started, migrated and filled."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), False
        return
    directory = settings.data_dir or default_directory(_home())
    log.info("no DATABASE_URL: starting the embedded database", directory=str(directory))
    embedded = EmbeddedPostgres(directory)
    signals.take_along(embedded.stop_at_once)
    with embedded:
        try:
            migrations.up(embedded.url)
            migrations.run_script(embedded.url, migrations.grants())
            migrations.run_script(embedded.url, demo.SQL)
            # As in production: with the service's few rights, and so under the name that the change log believes.
            yield embedded.url_as(migrations.SERVICE_ROLE), True
        finally:
            signals.ending()


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        remedy = "BILLING_GRPC_DATA_DIR: name the embedded database's folder: this user has no home"
        raise SettingsError([remedy]) from error


def _folder_to_count_in() -> TemporaryDirectory[str]:
    try:
        return TemporaryDirectory(prefix="billing-grpc-metrics-")
    except OSError as error:
        remedy = "TMPDIR: several workers count in a temporary folder, and there is none that this user may write to"
        raise SettingsError([remedy]) from error


def _run_workers(
    settings: Settings, database_url: str, signals: StopSignals, announce: Callable[[Sequence[Address]], None]
) -> None:
    """Serves in several processes; this one holds the ports, shows what they count, and answers no call itself."""
    tcp = [address for address in settings.listen if isinstance(address, TcpAddress)]
    with ExitStack() as stack:
        addresses = stack.enter_context(reserved(tcp))
        counted = stack.enter_context(_folder_to_count_in())
        signals.take_along(lambda: rmtree(counted, ignore_errors=True))
        if settings.metrics_listen is not None:
            stack.enter_context(_metrics_port(settings.metrics_listen, multiprocess_registry(Path(counted))))

        def buried(pid: int) -> None:
            forget_process(pid, Path(counted))

        async def run_all() -> None:
            environment = environment_with({"PROMETHEUS_MULTIPROC_DIR": counted})
            orders = Orders(settings, database_url, addresses, Path(counted))
            workers = Workers(orders, environment, buried)
            await workers.run(signals, lambda: announce(addresses))

        try:
            asyncio.run(run_all())
        except WorkerFailedError as error:
            sys.exit(error.exit_code)


async def serve(
    settings: Settings,
    database_url: str,
    signals: StopSignals,
    announce: Callable[[Sequence[Address]], None],
    *,
    shared: Sequence[TcpAddress] = (),
) -> None:
    """Serves in this process until a signal says stop.

    Args:
        settings: all of them.
        database_url: the database to use.
        signals: those of this process.
        announce: is told the addresses with their real ports once they answer.
        shared: for a worker, the addresses that its parent holds; it has no metrics port of its own then.

    Raises:
        StartupError: the server cannot start; says why and what to do.
    """
    entrance = _entrance(settings)
    org_default = _org_default(settings)
    metrics = Metrics(__version__, version("grpcio"))
    logs.on_drop(metrics.count_dropped_line)
    async with AsyncExitStack() as stack:
        told = stack.enter_context(signals.serving())
        stack.enter_context(hang_ups(lambda: _reload(org_default, entrance)))
        tracing = await _tracing(settings, metrics, stack)
        postgres = await stack.enter_async_context(
            PostgresRepository.opened(
                database_url, longest_budget=settings.storage_timeout, size=settings.database_connections
            )
        )
        repository = ObservedRepository(postgres, metrics, tracing)
        metrics.observe_pool(postgres.pool_stats)
        metrics.observe_database(lambda: postgres.available)
        metrics.observe_tasks(lambda: len(asyncio.all_tasks()))
        await stack.enter_async_context(_in_the_background(_refresh(metrics)))
        servicer = BillingModeService(
            repository, org_default.current, KeyList(settings.extra_blocked_keys), settings.storage_timeout, metrics
        )
        if settings.metrics_listen is not None and not shared:
            stack.enter_context(_metrics_port(settings.metrics_listen, metrics.registry))
        server = RpcServer(
            servicer,
            entrance=entrance,
            limits=settings.limits(),
            reflection_on=settings.reflection,
            shared_ports=bool(shared),
            metrics=metrics,
            tracing=tracing,
        )
        server.report_administration(works=False)
        bound = await stack.enter_async_context(_listening(server, shared or settings.listen, settings.grace))
        announce(bound)
        log.info("serving", version=__version__, addresses=[str(address) for address in bound])
        for look in (
            _say_whether_ready(repository, settings.storage_timeout),
            watch_administration(
                repository,
                lambda works: server.report_administration(works=works),
                budget=settings.storage_timeout,
            ),
        ):
            await stack.enter_async_context(_in_the_background(look))
        await _until_told(server, told)
        delay = 0 if told.result() is signal.SIGINT else settings.drain_delay
        log.info("stopping", delay=delay, grace=settings.grace)
        server.leave()
        await asyncio.sleep(delay)


async def _until_told(server: RpcServer, told: "asyncio.Future[signal.Signals]") -> None:
    # Never cancelled: a server whose wait was cut off cannot be stopped any more.
    ended = asyncio.create_task(server.ended())
    await asyncio.wait((ended, told), return_when=asyncio.FIRST_COMPLETED)
    if not told.done():
        # A process without listeners looks alive to whoever watches it; only its end brings a new one.
        # The name of what ended it and no more: its text may hold what a caller sent.
        error = ended.exception()
        log.error("the gRPC server ended by itself", error=None if error is None else type(error).__name__)
        raise ListenError("the gRPC server ended by itself: nothing listens any more; start it again")


@asynccontextmanager
async def _in_the_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _listening(server: RpcServer, addresses: Sequence[Address], grace: float) -> AsyncIterator[list[Address]]:
    try:
        yield await server.start(addresses)
    finally:
        await server.stop(grace)


async def _tracing(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> Tracing | None:
    """Tracing, when it is configured; its spans are sent until the stack is left."""
    if settings.traces_endpoint is None:
        return None
    # Needs what is not always installed; the settings were found to be right when they were read.
    exporting = import_module("billing_grpc.server.telemetry.trace_export").exporting
    sending = exporting(settings.traces_endpoint, settings.traces_sample, __version__, metrics)
    tracing: Tracing = await stack.enter_async_context(sending)
    return tracing


async def _refresh(metrics: Metrics) -> None:
    """Gauges that are never older than a second."""
    while True:
        metrics.refresh()
        await asyncio.sleep(_REFRESH_EVERY)


@contextmanager
def _metrics_port(address: TcpAddress, registry: CollectorRegistry) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            port = stack.enter_context(metrics_port.exposed(address, registry))
        except OSError as error:
            remedy = "name another in BILLING_GRPC_METRICS_LISTEN, or off"
            raise ListenError(f"cannot expose metrics on {address}: {error.strerror}; {remedy}") from error
        log.info("metrics exposed", address=str(replace(address, port=port)))
        yield


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
