"""Circuit breaker in front of the database: while the database is down, no call waits for it.

Circuit breaker libraries use the next caller as the probe, and that caller waits. Here a background task probes.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

import structlog

from billing_grpc.errors import DatabaseUnreachable, StorageError

log = structlog.stdlib.get_logger(__name__)

Listener = Callable[[StorageError | None], None]
Probe = Callable[[], Coroutine[Any, Any, StorageError | None]]

PROBE_EVERY: Final = 0.2
"""Seconds between the starts of two probes, however many calls ask for one."""

RIDE_OUT: Final = 0.5
"""Seconds for which probes may fail before the breaker opens. Calls wait meanwhile. A server refuses connections for about
this long while it restarts, also when it restarts its sessions because one of them was killed."""

OVERLAP_AFTER: Final = 0.45
"""Seconds after which a second probe starts while the first still waits. A probe whose packets were lost waits in vain;
a new connection reaches a database that has recovered."""

_MAX_PROBES: Final = 2


class Breaker:
    """Opens when a probe fails, never because a call fails; closes when a probe succeeds.

    A call can fail although the database works: its budget was too short, its row is locked, or slow writes hold the pool.
    So a failed call only starts a probe, which gets the budget of the longest call. The breaker keeps the error of that
    probe and no other value. It belongs to one event loop and is not thread-safe.

    Attributes:
        error: the error of the probe that opened the breaker; None while it is closed.
    """

    def __init__(self, probe: Probe) -> None:
        """Create a closed breaker.

        Args:
            probe: asks the database once, in bounded time. Returns the error; None if the database answered.
        """
        self.error: StorageError | None = None
        self._probe = probe
        self._succeeded_at = 0.0
        self._probed_at = -PROBE_EVERY
        self._listeners: list[Listener] = []
        self._probing: asyncio.Task[None] | None = None
        self._running: dict[asyncio.Task[StorageError | None], float] = {}
        self._stopped = False
        self._ride_out_until = 0.0
        self._open: asyncio.Future[None] | None = None
        self._closed = asyncio.Event()
        self._closed.set()

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` on the event loop at each change: with the error when the breaker opens, None when it closes."""
        self._listeners.append(listener)

    def record_success(self) -> None:
        """Record that a call has just read what a probe reads. The failure of a probe that began earlier is then ignored."""
        self._succeeded_at = asyncio.get_running_loop().time()

    def start_probing(self) -> None:
        """Start probing unless probes are running. Call this when a call failed or has waited for long."""
        if self._probing is None and not self._stopped:
            # No caller's context: a line about the database must not bear the request id of one caller.
            probing = self._probe_until_decided()
            self._probing = asyncio.get_running_loop().create_task(probing, context=Context())

    def until_open(self) -> "asyncio.Future[None]":
        """Return a future that is done once the breaker opens. All callers share it and must not cancel it."""
        if self._open is None:
            self._open = asyncio.get_running_loop().create_future()
        return self._open

    async def wait_until_closed(self) -> bool:
        """Wait until the breaker is closed; return False if it was stopped instead."""
        await self._closed.wait()
        return not self._stopped

    async def stop(self) -> None:
        """Stop probing. This takes as long as one probe at most."""
        self._stopped = True
        self._closed.set()
        if self._probing is not None:
            self._probing.cancel()
            with suppress(asyncio.CancelledError):
                await self._probing
        if self._running:
            await asyncio.wait(self._running)

    async def _probe_until_decided(self) -> None:
        loop = asyncio.get_running_loop()
        self._ride_out_until = loop.time() + RIDE_OUT
        try:
            while True:
                await asyncio.sleep(self._probed_at + PROBE_EVERY - loop.time())
                began = self._probed_at = loop.time()
                if len(self._running) < _MAX_PROBES:
                    self._running[loop.create_task(self._probe())] = began
                # A probe is never cancelled: it ends in bounded time, and cancelling a query sends a request to the server.
                done, _ = await asyncio.wait(self._running, timeout=OVERLAP_AFTER, return_when=asyncio.FIRST_COMPLETED)
                for probe in done:
                    if self._decided(probe, self._running.pop(probe)):
                        return
        finally:
            self._probing = None

    def _decided(self, probe: "asyncio.Task[StorageError | None]", began: float) -> bool:
        """Apply the result of a probe and return whether probing ends."""
        # An unexpected exception must not end the probing, because the breaker would stay open for ever.
        unexpected = probe.exception()
        if unexpected is not None:
            log.error("a probe of the database failed unexpectedly", exc_info=unexpected)
        error = probe.result() if unexpected is None else DatabaseUnreachable()
        if error is not None and self.error is None and self._succeeded_at >= began:
            return True  # calls succeeded meanwhile
        if error is not None and self.error is None and asyncio.get_running_loop().time() < self._ride_out_until:
            return False
        self._change(error)
        return error is None

    def _change(self, error: StorageError | None) -> None:
        before, self.error = self.error, error
        if (before is None) == (error is None):
            return
        if error is not None:
            log.warning("the database is down: every call fails at once until it answers again", reason=error.reason)
            self._closed.clear()
            if self._open is not None:
                self._open.set_result(None)
                self._open = None
        else:
            log.info("the database answers again")
            self._closed.set()
        for listener in self._listeners:
            listener(error)
