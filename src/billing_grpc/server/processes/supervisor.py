"""Several processes that answer on the same ports: started, replaced when they die, and stopped together."""

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
from billing_grpc.server.processes.stop_signals import StopSignals, hang_ups
from billing_grpc.server.settings.config import Settings

log = structlog.stdlib.get_logger(__name__)

READY: Final = b"ready\n"
"""What a worker writes to its standard output once it answers."""

LENGTH: Final = struct.Struct(">Q")
"""How a worker's orders begin on its standard input, which then stays open for as long as its parent lives."""

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_LIVED: Final = 10.0
"""Seconds after which a worker's end is not a sign that the next would end as well."""

_STOP_MARGIN: Final = 5.0
"""Seconds beyond its delay and grace after which a worker that still runs is killed."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told by its parent; nothing else of the settings reaches it.

    Attributes:
        settings: as the parent read and checked them.
        database_url: the database to use.
        addresses: where to listen, with real ports that the parent holds.
        counted: the directory where all of them count; the parent's, or of nobody when the parent was killed.
    """

    settings: Settings
    database_url: str
    addresses: tuple[TcpAddress, ...]
    counted: Path

    def packed(self) -> bytes:
        """As they stand on a worker's standard input."""
        packed = pickle.dumps(self)
        return LENGTH.pack(len(packed)) + packed


class WorkerFailedError(Exception):
    """A worker ended before it answered; it has said why.

    Attributes:
        exit_code: its exit code, 128 and the number where a signal ended it.
    """

    def __init__(self, returncode: int) -> None:
        super().__init__()
        self.exit_code = returncode if returncode >= 0 else 128 - returncode


class Workers:
    """The workers of this process.

    Args:
        orders: what each of them is told.
        environment: the environment of each.
        buried: is told the process id of each that has ended.
    """

    def __init__(self, orders: Orders, environment: Mapping[str, str], buried: Callable[[int], object]) -> None:
        self._orders = orders
        self._packed = orders.packed()
        self._environment = environment
        self._buried = buried
        self._running: set[Process] = set()
        self._answering: set[Process] = set()
        self._leaving = asyncio.Event()

    async def run(self, signals: StopSignals, answering: Callable[[], None]) -> None:
        """Keeps them running until a signal says stop, then stops them; SIGHUP is handed on to each.

        Args:
            signals: those of this process.
            answering: is called once, when all of them answer.

        Raises:
            WorkerFailedError: one could not start in the first place. The others are stopped.
        """
        signals.take_along(self.kill)
        ready = [asyncio.Event() for _ in range(self._orders.settings.workers)]
        with signals.serving() as told, hang_ups(lambda: self._send(signal.SIGHUP)):
            kept = [asyncio.create_task(self._keep(number, each)) for number, each in enumerate(ready, 1)]
            ends: list[Future[Any]] = [told, *kept]
            started = asyncio.create_task(_announced(ready, answering))
            try:
                # Ends early only with an error: a worker is kept for as long as nobody says stop.
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                started.cancel()
                await self._stop(told.result() if told.done() else signal.SIGINT, kept)
        for each in kept:
            each.result()

    async def _stop(self, number: signal.Signals, kept: list[Task[None]]) -> None:
        self._leaving.set()
        for process in self._running - self._answering:
            _signal(process, signal.SIGKILL)  # knows no other signal yet, and has nothing to finish
        self._send(number)
        delay = 0 if number is signal.SIGINT else self._orders.settings.drain_delay
        _, late = await asyncio.wait(kept, timeout=delay + self._orders.settings.grace + _STOP_MARGIN)
        if late:
            log.error("workers did not end in time and are killed", workers=[each.pid for each in self._running])
            self.kill()
            await asyncio.wait(late)

    def kill(self) -> None:
        """Ends every worker without waiting for anything."""
        for process in tuple(self._running):
            _signal(process, signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for process in tuple(self._answering):
            _signal(process, number)

    async def _keep(self, number: int, ready: asyncio.Event) -> None:
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        while not self._leaving.is_set():
            born = loop.time()
            pid, returncode = await self._one(ready)
            if self._leaving.is_set():
                return
            if not ready.is_set():
                log.error("a worker could not start", worker=number, pid=pid, exit_code=returncode)
                raise WorkerFailedError(returncode)
            pause = _FIRST_PAUSE if loop.time() - born > _LIVED else pause
            log.error(
                "a worker ended by itself; another follows", worker=number, pid=pid, exit_code=returncode, pause=pause
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _one(self, ready: asyncio.Event) -> tuple[int, int]:
        """Starts a worker and waits for its end; answers its process id and what it ended with."""
        # A group of its own: what a terminal sends to all at once reaches it through its parent, once.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "billing_grpc.server.processes.worker"),
            stdin=PIPE,
            stdout=PIPE,
            env=dict(self._environment),
            process_group=0,
        )
        stdin, stdout = cast("StreamWriter", process.stdin), cast("StreamReader", process.stdout)
        self._running.add(process)
        try:
            stdin.write(self._packed)
            if self._leaving.is_set():
                _signal(process, signal.SIGKILL)
            if await stdout.readline() == READY:
                self._answering.add(process)
                ready.set()
            return process.pid, await process.wait()
        finally:
            self._running.discard(process)
            self._answering.discard(process)
            self._buried(process.pid)


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


async def _announced(ready: list[asyncio.Event], answering: Callable[[], None]) -> None:
    for each in ready:
        await each.wait()
    answering()
