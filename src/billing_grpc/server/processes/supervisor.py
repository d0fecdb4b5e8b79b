"""The supervisor of workers, processes that answer on the same ports: it starts, replaces and stops them."""

import asyncio
import pickle
import signal
import struct
import sys
from asyncio import Future, StreamReader, StreamWriter, Task
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import structlog

from billing_grpc.addresses import TcpAddress
from billing_grpc.server.processes.stop_signals import StopSignals, on_hang_up
from billing_grpc.server.settings.config import Settings

log = structlog.stdlib.get_logger(__name__)

READY: Final = b"ready\n"
"""The line that a worker writes to its standard output once it answers."""

LENGTH: Final = struct.Struct(">Q")
"""The format of the length that precedes the settings on a worker's standard input.

The pipe stays open for as long as the parent lives.
"""

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_STABLE_AFTER: Final = 10.0
"""Seconds after which the end of a worker does not suggest that the next one would end as well."""

_STOP_MARGIN: Final = 5.0
"""Seconds beyond its delay and grace after which a worker that still runs is killed."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Everything that a worker needs; it reads no setting of its own.

    Attributes:
        settings: the settings as the parent read and checked them.
        database_url: the database to use.
        addresses: where to listen, with the real ports that the parent holds.
        metrics_directory: the folder where all workers count; the parent removes it, or a worker whose parent was killed.
    """

    settings: Settings
    database_url: str
    addresses: tuple[TcpAddress, ...]
    metrics_directory: Path

    def to_bytes(self) -> bytes:
        """Return the length and the settings as a worker reads them from its standard input."""
        pickled = pickle.dumps(self)
        return LENGTH.pack(len(pickled)) + pickled


class WorkerFailedError(Exception):
    """A worker ended before it answered. The worker itself printed the cause.

    Attributes:
        exit_code: the worker's exit code; 128 and the signal's number if a signal ended it.
    """

    def __init__(self, returncode: int) -> None:
        super().__init__()
        self.exit_code = returncode if returncode >= 0 else 128 - returncode


class Workers:
    """The workers of this process.

    Args:
        worker_settings: the settings of each worker.
        environment: the environment of each worker.
        on_exit: called with the process id of each worker that has ended.
    """

    def __init__(
        self, worker_settings: WorkerSettings, environment: Mapping[str, str], on_exit: Callable[[int], object]
    ) -> None:
        self._settings = worker_settings.settings
        self._input = worker_settings.to_bytes()
        self._environment = environment
        self._on_exit = on_exit
        self._running: set[Process] = set()
        self._answering: set[Process] = set()
        self._stopping = asyncio.Event()

    async def run(self, signals: StopSignals, on_ready: Callable[[], None]) -> None:
        """Keep the workers running until a signal says stop, then stop them; pass SIGHUP on to each.

        Args:
            signals: the signals of this process.
            on_ready: called once, when all workers answer.

        Raises:
            WorkerFailedError: a worker could not start the first time. The others are stopped.
        """
        signals.at_forced_exit(self.kill)
        ready = [asyncio.Event() for _ in range(self._settings.workers)]
        with signals.serving() as stop, on_hang_up(lambda: self._send(signal.SIGHUP)):
            kept = [asyncio.create_task(self._keep(number, each)) for number, each in enumerate(ready, 1)]
            ends: list[Future[Any]] = [stop, *kept]
            started = asyncio.create_task(_call_when_ready(ready, on_ready))
            try:
                # A task of `kept` ends early only with an error.
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                started.cancel()
                await self._stop(stop.result() if stop.done() else signal.SIGINT, kept)
        for each in kept:
            each.result()

    async def _stop(self, number: signal.Signals, kept: list[Task[None]]) -> None:
        self._stopping.set()
        for process in self._running - self._answering:
            _signal(process, signal.SIGKILL)  # handles no other signal yet, and has no call to finish
        self._send(number)
        delay = 0 if number is signal.SIGINT else self._settings.drain_delay
        _, late = await asyncio.wait(kept, timeout=delay + self._settings.grace + _STOP_MARGIN)
        if late:
            log.error("workers did not end in time and are killed", workers=[each.pid for each in self._running])
            self.kill()
            await asyncio.wait(late)

    def kill(self) -> None:
        """End every worker at once."""
        for process in tuple(self._running):
            _signal(process, signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for process in tuple(self._answering):
            _signal(process, number)

    async def _keep(self, number: int, ready: asyncio.Event) -> None:
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        while not self._stopping.is_set():
            started = loop.time()
            pid, returncode = await self._run_one(ready)
            if self._stopping.is_set():
                return
            if not ready.is_set():
                log.error("a worker could not start", worker=number, pid=pid, exit_code=returncode)
                raise WorkerFailedError(returncode)
            pause = _FIRST_PAUSE if loop.time() - started > _STABLE_AFTER else pause
            log.error(
                "a worker ended by itself; another follows", worker=number, pid=pid, exit_code=returncode, pause=pause
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run_one(self, ready: asyncio.Event) -> tuple[int, int]:
        """Start a worker and wait for its end; return its process id and return code."""
        # A process group of its own: a signal that a terminal sends to the whole group reaches a worker once, by its parent.
        process = await asyncio.create_subprocess_exec(
            # -P: a file that somebody left in the current folder must not be taken for a module of this program.
            *(sys.executable, "-P", "-m", "billing_grpc.server.processes.worker"),
            stdin=PIPE,
            stdout=PIPE,
            env=dict(self._environment),
            process_group=0,
        )
        stdin, stdout = cast("StreamWriter", process.stdin), cast("StreamReader", process.stdout)
        self._running.add(process)
        try:
            stdin.write(self._input)
            if self._stopping.is_set():
                _signal(process, signal.SIGKILL)
            if await stdout.readline() == READY:
                self._answering.add(process)
                ready.set()
            return process.pid, await process.wait()
        finally:
            self._running.discard(process)
            self._answering.discard(process)
            self._on_exit(process.pid)


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


async def _call_when_ready(ready: list[asyncio.Event], on_ready: Callable[[], None]) -> None:
    for each in ready:
        await each.wait()
    on_ready()
