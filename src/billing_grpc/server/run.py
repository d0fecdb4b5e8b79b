"""Run a server process: start, serve until a signal says stop, drain and stop."""

import asyncio
import gc
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any, Final

import structlog

from billing_grpc import __version__
from billing_grpc.addresses import Address, TcpAddress
from billing_grpc.errors import ListenError, SettingsError, StorageError
from billing_grpc.server import compose, demo
from billing_grpc.server.health import watch_administration
from billing_grpc.server.listener import AccessPolicy, RpcServer
from billing_grpc.server.net.ports import reserved
from billing_grpc.server.org_default import OrgDefault
from billing_grpc.server.org_default_trail import record_org_defaults
from billing_grpc.server.processes.stop_signals import StopSignals, on_hang_up
from billing_grpc.server.processes.supervisor import WorkerFailedError, Workers, WorkerSettings
from billing_grpc.server.settings.config import Settings, environment_with
from billing_grpc.server.telemetry import logs
from billing_grpc.server.telemetry.gauges import Gauges
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.multiprocess import forget_process, multiprocess_registry
from billing_grpc.storage.repository import Repository

log = structlog.stdlib.get_logger(__name__)

_REFRESH_INTERVAL: Final = 1.0
_FORCED_EXIT_FLUSH: Final = 0.2
"""Seconds that the log's reader gets to take a line when a second signal ends the process."""


def run(
    settings: Settings, say: Callable[[str], None], started: Callable[[Sequence[Address]], None] = lambda _: None
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: the settings of the server.
        say: called with the lines for standard output; must not wait for their reader.
        started: called with the addresses and their real ports once they answer.

    Raises:
        StartupError: the server cannot start; the message names the cause and the remedy.
    """
    logs.configure(settings.log_format, settings.log_level)
    signals = StopSignals()
    signals.at_forced_exit(lambda: logs.flush(_FORCED_EXIT_FLUSH))
    with ExitStack() as stack:
        # The log lines of a failed start come before its error message on standard error.
        stack.callback(logs.flush)
        database_url, embedded = stack.enter_context(compose.database(settings, signals))

        def announce(bound: Sequence[Address]) -> None:
            lines = [f"listening on {address}" for address in bound]
            say("\n".join([*lines, demo.hints(bound[0])] if embedded else lines))
            started(bound)

        if settings.workers > 1:
            _run_workers(settings, database_url, signals, announce)
        else:
            run_on_loop(serve(settings, database_url, signals, announce))
        log.info("stopped")


def run_on_loop(serving: Coroutine[Any, Any, None]) -> None:
    """Run a server on uvloop if it is installed, which it is on Linux and macOS, and on asyncio's own loop elsewhere."""
    try:
        factory = import_module("uvloop").new_event_loop
    except ModuleNotFoundError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serving)


def _run_workers(
    settings: Settings, database_url: str, signals: StopSignals, announce: Callable[[Sequence[Address]], None]
) -> None:
    """Serve in several processes; this one holds the ports and exposes the metrics, and answers no call itself."""
    tcp = [address for address in settings.listen if isinstance(address, TcpAddress)]
    with ExitStack() as stack:
        addresses = stack.enter_context(reserved(tcp))
        metrics_directory = Path(stack.enter_context(_temporary_metrics_directory()))
        signals.at_forced_exit(lambda: rmtree(metrics_directory, ignore_errors=True))
        if settings.metrics_listen is not None:
            registry = multiprocess_registry(metrics_directory)
            stack.enter_context(compose.exposed_metrics(settings.metrics_listen, registry))

        async def run_all() -> None:
            environment = environment_with({"PROMETHEUS_MULTIPROC_DIR": str(metrics_directory)})
            worker_settings = WorkerSettings(settings, database_url, addresses, metrics_directory)
            workers = Workers(worker_settings, environment, lambda pid: forget_process(pid, metrics_directory))
            await workers.run(signals, lambda: announce(addresses))

        try:
            asyncio.run(run_all())
        except WorkerFailedError as error:
            sys.exit(error.exit_code)


def _temporary_metrics_directory() -> TemporaryDirectory[str]:
    try:
        return TemporaryDirectory(prefix="billing-grpc-metrics-")
    except OSError as error:
        remedy = (
            "TMPDIR: several workers need a temporary folder for their counters; name one that this user may write to"
        )
        raise SettingsError([remedy]) from error


async def serve(
    settings: Settings,
    database_url: str,
    signals: StopSignals,
    announce: Callable[[Sequence[Address]], None],
    *,
    shared: Sequence[TcpAddress] = (),
) -> None:
    """Serve in this process until a signal says stop.

    Args:
        settings: the settings of the server.
        database_url: the database to use.
        signals: the signals of this process.
        announce: called with the addresses and their real ports once they answer.
        shared: for a worker, the addresses that its parent holds; a worker has no metrics port of its own.

    Raises:
        StartupError: the server cannot start; the message names the cause and the remedy.
    """
    access_policy, org_default = compose.access_policy(settings), compose.org_default(settings)
    keys = compose.key_list(settings)
    metrics = Metrics(__version__, version("grpcio"))
    logs.on_drop(metrics.count_dropped_line)
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(signals.serving())
        stack.enter_context(on_hang_up(lambda: _reload(org_default, access_policy)))
        tracing = await stack.enter_async_context(compose.tracing(settings, metrics))
        repository = await stack.enter_async_context(compose.repository(settings, database_url, metrics, tracing))
        metrics.gauges.observe_tasks(lambda: len(asyncio.all_tasks()))
        await stack.enter_async_context(_in_the_background(_refresh(metrics.gauges)))
        if settings.metrics_listen is not None and not shared:
            stack.enter_context(compose.exposed_metrics(settings.metrics_listen, metrics.registry))
        server = compose.rpc_server(
            settings,
            repository,
            org_default,
            access_policy,
            keys=keys,
            metrics=metrics,
            tracing=tracing,
            shared_ports=bool(shared),
        )
        server.report_administration(works=False)
        bound = await stack.enter_async_context(_listening(server, shared or settings.listen, settings.grace))
        _spare_collector()
        announce(bound)
        addresses = [str(address) for address in bound]
        log.info("serving", version=__version__, addresses=addresses, catalogue=str(keys.catalogue))
        for work in (
            _log_whether_ready(repository, settings.storage_timeout),
            watch_administration(
                repository, lambda works: server.report_administration(works=works), budget=settings.storage_timeout
            ),
            record_org_defaults(
                repository,
                org_default.current,
                server=socket.gethostname(),
                origin="environment" if settings.org_default_file is None else "file",
                budget=settings.storage_timeout,
            ),
        ):
            await stack.enter_async_context(_in_the_background(work))
        await _until_stopped(server, stop)
        delay = 0 if stop.result() is signal.SIGINT else settings.drain_delay
        log.info("stopping", delay=delay, grace=settings.grace)
        server.drain()
        await asyncio.sleep(delay)


def _spare_collector() -> None:
    """Leave what the start has made out of every collection of garbage."""
    gc.collect()
    gc.freeze()


async def _until_stopped(server: RpcServer, stop: "asyncio.Future[signal.Signals]") -> None:
    # Never cancelled: a server whose wait was cut off cannot be stopped any more.
    ended = asyncio.create_task(server.ended())
    await asyncio.wait((ended, stop), return_when=asyncio.FIRST_COMPLETED)
    if not stop.done():
        # A process without listeners looks alive to its supervisor, so it must end: only then is it replaced.
        # The log gets the error's type alone: its text may hold what a caller sent.
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


async def _refresh(gauges: Gauges) -> None:
    """Refresh the gauges every second, so that a scrape never reads an older value."""
    while True:
        gauges.refresh()
        await asyncio.sleep(_REFRESH_INTERVAL)


def _reload(org_default: OrgDefault, access_policy: AccessPolicy) -> None:
    """Read every file again on SIGHUP, changed or not."""
    org_default.reload()
    access_policy.principals.reload()
    if access_policy.tls is not None:
        access_policy.tls.reload()


async def _log_whether_ready(repository: Repository, budget: float) -> None:
    try:
        await repository.load_override(str(uuid.UUID(int=0)), budget=budget)
    except StorageError as error:
        log.warning("database not ready: decisions are closed until it is", reason=error.reason, remedy=error.message)
    else:
        log.info("database ready")
