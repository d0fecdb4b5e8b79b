"""Run each piece of work on a pooled connection within its budget, whatever the database does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from psycopg import AsyncRawCursor

from billing_grpc.errors import DatabaseStale, DatabaseTimeout, DatabaseUnreachable, RequestError, StorageError
from billing_grpc.storage.postgres.address import complete_address
from billing_grpc.storage.postgres.breaker import Breaker
from billing_grpc.storage.postgres.budgets import SEVER_AT, SUSPICIOUS_AFTER, server_timeout
from billing_grpc.storage.postgres.connecting import PersistentConnection
from billing_grpc.storage.postgres.driver_errors import storage_error
from billing_grpc.storage.postgres.lending import ConnectionLender, Lease, Result, Work
from billing_grpc.storage.postgres.probe import DatabaseProbe
from billing_grpc.storage.postgres.slots import Slots
from billing_grpc.storage.postgres.standing import StaleSession

_NAME: Final = "billing_grpc"
_PROBE_NAME: Final = "billing_grpc probe"
_CLOSE_TIMEOUT: Final = 1.0
_SEVERED_FOR: Final = 0.1
"""Seconds in which work ends by itself once its connection was severed."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The pool at one moment.

    Attributes:
        size: connections that it is meant to hold.
        idle: connections that are ready and have no work.
        in_use: connections with work.
        waiting: pieces of work that wait for a connection.
    """

    size: int
    idle: int
    in_use: int
    waiting: int


class BoundedPool:
    """Runs work on pooled connections. Each call returns or raises within its budget.

    A query is never cancelled, because cancelling asks the server, and a hung server holds the caller for ten seconds. Each
    piece of work is a task. When its time is up, the socket of its connection is shut down, which ends the task at once. If
    a caller is cancelled, its work runs to its end. While the database is known to be down, no work is started.

    Attributes:
        breaker: knows whether the database is down.
    """

    def __init__(self, database_url: str, *, size: int, longest_budget: float, probe: Work[object]) -> None:
        """Prepare the pool. It connects from `opened` on.

        Args:
            database_url: the address of the database.
            size: how many connections to hold.
            longest_budget: the longest budget, in seconds, that any call will give.
            probe: the query that finds out whether the database answers.

        Raises:
            SettingsError: libpq would not accept the address.
        """
        # psycopg prepares no statements: a pooler may run one in a session where the name means another statement.
        connect = {"autocommit": True, "cursor_factory": AsyncRawCursor, "prepare_threshold": None}

        class PooledConnection(PersistentConnection):
            """The connections of this pool."""

            statement_timeout = server_timeout(longest_budget)

        self._lender = ConnectionLender(complete_address(database_url, _NAME), PooledConnection, connect, size)
        probe_connect = {"conninfo": complete_address(database_url, _PROBE_NAME), **connect}
        self._probe = DatabaseProbe(PooledConnection, probe_connect, probe, longest_budget, self._lender)
        self.breaker = Breaker(self._probe)
        self.breaker.add_listener(self._on_change)
        PooledConnection.wait_until_wanted = self.breaker.wait_until_closed
        self._size = size
        self._slots = Slots(size)
        self._leases: dict[asyncio.Task[Any], Lease] = {}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Keep the pool open; do not wait for the database, which may come later."""
        await self._lender.open()
        try:
            yield
        finally:
            await self._end_work()
            self._probe.abort()
            await self.breaker.stop()
            await self._lender.close(_CLOSE_TIMEOUT)

    async def _end_work(self) -> None:
        """Wait for the work that runs, and end it if it takes long: the callers have gone, and budgets may be long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _CLOSE_TIMEOUT
        severed_at: dict[asyncio.Task[Any], float] = {}
        while self._leases:  # a shared read that ends starts the next one
            wait = max(_SEVERED_FOR, until - loop.time())
            await asyncio.wait(self._leases, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if (now := loop.time()) < until:
                continue
            for task, lease in list(self._leases.items()):
                if now - severed_at.setdefault(task, now) >= _SEVERED_FOR:
                    task.cancel()  # a stop must not depend on how work takes the end of its connection
                lease.expire()

    @property
    def stats(self) -> PoolStats:
        """The pool now. A connection that a probe has borrowed is neither idle nor in use."""
        in_use = sum(lease.connection is not None for lease in self._leases.values())
        return PoolStats(self._size, self._lender.idle, in_use, waiting=len(self._leases) - in_use)

    @property
    def crowded(self) -> bool:
        """Whether work waits for a connection."""
        return any(lease.connection is None for lease in self._leases.values())

    def deadline(self, budget: float) -> float:
        """Return when work that begins now is severed, in the clock of the event loop."""
        return asyncio.get_running_loop().time() + budget * SEVER_AT

    def read_deadline(self, budget: float) -> float:
        """Return when a read that begins now is severed, in the clock of the event loop.

        A read gets some time even if its caller has almost none: the caller fails, and the healthy connection stays.
        """
        return self.deadline(max(budget, SUSPICIOUS_AFTER))

    async def run(
        self,
        work: Work[Result],
        *,
        budget: float,
        writes: bool = False,
        may_repeat: Callable[[], bool] = lambda: True,
        counts_as_success: bool = True,
    ) -> Result:
        """Run `work` and return its result.

        Args:
            work: what to do with a connection.
            budget: seconds until this method has returned or raised.
            writes: whether the work writes. Such work may use only half of the connections.
            may_repeat: returns whether the work may be repeated on another connection.
            counts_as_success: whether the work reads what the probe reads, so that its success refutes a failed probe.

        Raises:
            StorageError: the work failed, its time was up, or the database is known to be down.
        """
        await self.require_available()
        deadline = self.deadline(budget) if writes else self.read_deadline(budget)
        task, lease = self._start(work, deadline, may_repeat, writes=writes)
        try:
            result = await self._result(task, lease, budget, writes=writes)
        except (DatabaseUnreachable, DatabaseTimeout, DatabaseStale):
            self.breaker.start_probing()
            raise
        if counts_as_success:
            self.breaker.record_success()
        return result

    def start_read(self, work: Work[Result], deadline: float) -> tuple[asyncio.Task[Result], Lease]:
        """Start work that only reads, and return at once. The caller looks after the result and the breaker.

        Args:
            work: what to do with a connection; it may be repeated.
            deadline: when the work is ended, in the clock of the event loop.

        Returns:
            The task, which raises StorageError, and its lease.
        """
        return self._start(work, deadline, lambda: True, writes=False)

    async def require_available(self) -> None:
        """Return if the database is not known to be down.

        Raises:
            StorageError: it is.
        """
        if (error := self.breaker.error) is not None:
            await asyncio.sleep(0)  # a caller that retries without pause must not keep the event loop busy
            raise type(error)

    def _start(
        self, work: Work[Result], deadline: float, may_repeat: Callable[[], bool], *, writes: bool
    ) -> tuple[asyncio.Task[Result], Lease]:
        loop = asyncio.get_running_loop()
        lease = Lease(deadline)
        lease.renew(deadline)
        task = loop.create_task(self._run_in_slot(lease, work, may_repeat, writes=writes))
        self._leases[task] = lease

        def ended(task: asyncio.Task[Result]) -> None:
            lease.end()
            del self._leases[task]
            if not task.cancelled():
                task.exception()  # retrieved, or asyncio complains if the caller has gone

        task.add_done_callback(ended)
        return task, lease

    async def _result(self, task: asyncio.Task[Result], lease: Lease, budget: float, *, writes: bool) -> Result:
        """Return the result of the task within the budget, and raise as soon as the breaker opens, except for a write."""
        done, _ = await asyncio.wait((task,), timeout=min(budget, SUSPICIOUS_AFTER))
        if not done and budget > SUSPICIOUS_AFTER:
            self.breaker.start_probing()
            left = budget - SUSPICIOUS_AFTER
            if writes:
                # The caller needs to know whether the write happened more than it needs an early answer.
                await asyncio.wait((task,), timeout=left)
            elif self.breaker.error is None:
                ends: tuple[asyncio.Future[Any], ...] = (task, self.breaker.until_open())
                await asyncio.wait(ends, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if self.breaker.error is None:
            raise DatabaseTimeout
        lease.expire()
        raise type(self.breaker.error)

    async def _run_in_slot(
        self, lease: Lease, work: Work[Result], may_repeat: Callable[[], bool], *, writes: bool
    ) -> Result:
        """Run the work once it has a slot, and translate its errors."""
        await self._slots.acquire(lease.deadline, writes=writes)
        try:
            return await self._lender.lend_until_done(lease, work, may_repeat)
        except RequestError:
            raise
        except StaleSession as error:
            raise DatabaseStale from error
        except Exception as error:
            raise storage_error(error) from error
        finally:
            self._slots.release(writes=writes)

    def _on_change(self, error: StorageError | None) -> None:
        if error is not None:
            self._lender.replace_idle_connections()
