"""Knows whether the database can be asked at all, so that while it cannot, nobody waits to find out.

An own one: the libraries let the next caller be the probe, who then waits as long as the outage makes him; here nobody does.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

import structlog

from billing_grpc.errors import DatabaseUnreachable, StorageError

log = structlog.stdlib.get_logger(__name__)

Listener = Callable[[StorageError | None], None]
Probe = Callable[[], Coroutine[Any, Any, StorageError | None]]

PROBE_EVERY: Final = 0.2
"""Seconds between the beginnings of two probes, however many calls suspect something."""

RIDE_OUT: Final = 0.5
"""Seconds for which a server may refuse before it counts as down: as it does while it restarts, or replaces its sessions
because one of them was killed. Calls wait meanwhile."""

OVERLAP_AFTER: Final = 0.45
"""Seconds after which a second probe begins while the first still waits: what a network lost stays lost, and a new attempt
finds the database that is back."""

_AT_ONCE: Final = 2


class Breaker:
    """Opens when a probe failed, and never because a call did; closes when a probe succeeded.

    A call can fail for reasons of its own: too little time left, a row that somebody has locked, a pool that slow writes
    have taken. It raises a suspicion, and one probe, with a worst-case call's time, decides. It keeps the error that the
    probe saw, and nothing else: no value is ever answered from memory. For one event loop; not thread-safe.

    Attributes:
        error: why the database cannot be asked; None while it can, as far as anybody knows.
    """

    def __init__(self, probe: Probe) -> None:
        """Prepares it, closed; `probe` asks the database once, within bounds, and answers why it could not."""
        self.error: StorageError | None = None
        self._probe = probe
        self._proved_at = 0.0
        self._probed_at = -PROBE_EVERY
        self._listeners: list[Listener] = []
        self._probing: asyncio.Task[None] | None = None
        self._running: dict[asyncio.Task[StorageError | None], float] = {}
        self._stopped = False
        self._ride_out_until = 0.0
        self._opening: asyncio.Future[None] | None = None
        self._let_in = asyncio.Event()
        self._let_in.set()

    def add_listener(self, listener: Listener) -> None:
        """Calls it, on the event loop, at each change from now on: with the error, or None once the database is back."""
        self._listeners.append(listener)

    def prove(self) -> None:
        """Says that a call has just read what a probe reads; a probe that failed meanwhile met something else."""
        self._proved_at = asyncio.get_running_loop().time()

    def suspect(self) -> None:
        """Says that a call failed, or takes suspiciously long; a probe begins unless one is running."""
        if self._probing is None and not self._stopped:
            self._probing = asyncio.get_running_loop().create_task(self._probe_until_it_answers())

    def opening(self) -> "asyncio.Future[None]":
        """Done as soon as the database is known to be down; the same for all who wait, so that nobody may cancel it."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_future()
        return self._opening

    async def let_in(self) -> bool:
        """Returns once the database is not known to be down: True, or False when there is nothing to wait for any more."""
        await self._let_in.wait()
        return not self._stopped

    async def stop(self) -> None:
        """Ends the probing, after a probe's time at most."""
        self._stopped = True
        self._let_in.set()
        if self._probing is not None:
            self._probing.cancel()
            with suppress(asyncio.CancelledError):
                await self._probing
        if self._running:
            await asyncio.wait(self._running)

    async def _probe_until_it_answers(self) -> None:
        loop = asyncio.get_running_loop()
        self._ride_out_until = loop.time() + RIDE_OUT
        try:
            while True:
                await asyncio.sleep(self._probed_at + PROBE_EVERY - loop.time())
                began = self._probed_at = loop.time()
                if len(self._running) < _AT_ONCE:
                    self._running[loop.create_task(self._probe())] = began
                # Never cancelled: each ends in time by itself, and a query that is cancelled asks the server.
                done, _ = await asyncio.wait(self._running, timeout=OVERLAP_AFTER, return_when=asyncio.FIRST_COMPLETED)
                for probe in done:
                    if self._answered(probe, self._running.pop(probe)):
                        return
        finally:
            self._probing = None

    def _answered(self, probe: "asyncio.Task[StorageError | None]", began: float) -> bool:
        # One that ended in a way nobody foresaw must not end the probing: what is known to be down would stay so for ever.
        unforeseen = probe.exception()
        if unforeseen is not None:
            log.error("asking whether the database answers failed unexpectedly", exc_info=unforeseen)
        error = probe.result() if unforeseen is None else DatabaseUnreachable()
        if error is not None and self.error is None and self._proved_at >= began:
            return True  # calls got their answers meanwhile
        if error is not None and self.error is None and asyncio.get_running_loop().time() < self._ride_out_until:
            return False
        self._change(error)
        return error is None

    def _change(self, error: StorageError | None) -> None:
        before, self.error = self.error, error
        if (before is None) == (error is None):
            return
        if error is not None:
            log.warning("the database is down: every call is told so at once until it answers", reason=error.reason)
            self._let_in.clear()
            if self._opening is not None:
                self._opening.set_result(None)
                self._opening = None
        else:
            log.info("the database answers again")
            self._let_in.set()
        for listener in self._listeners:
            listener(error)
