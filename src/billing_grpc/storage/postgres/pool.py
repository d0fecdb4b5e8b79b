"""A connection pool that gives every piece of work a budget and keeps to it, whatever the database does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncRawCursor
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from billing_grpc.errors import (
    DatabaseStale,
    DatabaseTimeout,
    DatabaseUnreachable,
    RequestError,
    SchemaNotReady,
    StorageError,
)
from billing_grpc.storage.postgres.address import complete_address
from billing_grpc.storage.postgres.breaker import Breaker
from billing_grpc.storage.postgres.connection import Connection, ForeignSession
from billing_grpc.storage.postgres.driver_errors import connect_error_kind, storage_error
from billing_grpc.storage.postgres.probe import DatabaseProbe
from billing_grpc.storage.postgres.standing import StaleSession

Result = TypeVar("Result")
Work = Callable[[Connection], Awaitable[Result]]

_NAME: Final = "billing_grpc"
_PROBE_NAME: Final = "billing_grpc probe"
_SEVER_AT: Final = 0.9
"""The part of a budget after which a connection is severed; the rest is for what follows from it."""
_STATEMENT_AT: Final = 0.85
"""The part of the longest budget after which the server ends a statement itself, and the connection survives."""
_CLOSE_TIMEOUT: Final = 1.0
_TURN: Final = 0.25
_DRAIN_EVERY: Final = 1.0
"""Seconds between two replacements of all idle connections: a table that is locked for long must not churn them."""

_SUSPICIOUS_AFTER: Final = 0.15
"""Seconds without an answer after which the database itself is asked; reads take a hundredth of that."""

_CONNECT_AT_ONCE: Final = 2
"""Connections that are made at the same time: a database that has just come back is not met by all of them at once."""


def server_timeout(budget: float, used: float = 0) -> str:
    """After how long the server is to end a statement, as Postgres takes it.

    Args:
        budget: of the call, in seconds.
        used: the seconds of it that are over, as spent waiting for a connection.
    """
    return f"{max(1, int((budget * _STATEMENT_AT - used) * 1000))}ms"


@dataclass(slots=True)
class _Lease:
    """The connection that a piece of work holds at this moment, and whether its time is up."""

    connection: Connection | None = None
    expired: bool = False

    def expire(self) -> None:
        self.expired = True
        if self.connection is not None:
            self.connection.sever()


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The pool at one moment.

    Attributes:
        size: connections it is to hold.
        idle: connections that stand and wait for work.
        in_use: connections at work.
        waiting: pieces of work that wait for a connection.
    """

    size: int
    idle: int
    in_use: int
    waiting: int


class BoundedPool:
    """Runs work on pooled connections; every answer comes within its budget.

    A query is never cancelled: cancelling asks the server, and a hung one holds the caller for ten seconds. Each piece of
    work is a task of its own, and when its time is up its socket is shut down, which ends it at once. A caller that goes
    away leaves its work to finish in peace. While the database is known to be down, nothing is even tried.

    Attributes:
        breaker: knows whether the database can be asked.
    """

    def __init__(self, database_url: str, *, size: int, longest_budget: float, probe: Work[object]) -> None:
        """Prepares the pool; nothing connects before `opened`.

        Args:
            database_url: the Postgres.
            size: how many connections to hold.
            longest_budget: the longest budget, in seconds, that any call will give.
            probe: what to ask the database when it is suspected to be down; it answers when this does, in time.

        Raises:
            SettingsError: the address is not one that libpq understands.
        """
        # A pooler may run a statement that was prepared under a name in a session where the name means another statement.
        connect = {"autocommit": True, "cursor_factory": AsyncRawCursor, "prepare_threshold": None}

        class PooledConnection(Connection):
            """Remembers failures for this pool alone."""

            statement_timeout = server_timeout(longest_budget)

        own = {"conninfo": complete_address(database_url, _PROBE_NAME), **connect}
        self._ask_anew = DatabaseProbe(PooledConnection, own, probe, longest_budget)
        self._ask = probe
        self.breaker = Breaker(self._probe)
        self.breaker.add_listener(self._on_change)
        PooledConnection.may_connect = self.breaker.wait_until_closed
        self._connection_class = PooledConnection
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            complete_address(database_url, _NAME),
            connection_class=PooledConnection,
            kwargs=connect,
            min_size=size,
            max_size=size,
            num_workers=_CONNECT_AT_ONCE,
            open=False,
        )
        self._size = size
        # As many as there are connections: who waits for the pool then waits for a connection that does not exist yet, and
        # never behind others, in a queue of the pool's that the dead do not leave.
        self._slots = asyncio.Semaphore(size)
        self._write_slots = asyncio.Semaphore(max(1, size // 2))
        self._working: dict[asyncio.Task[Any], _Lease] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._drained_at = -_DRAIN_EVERY

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """The pool while it is open; does not wait for the database, which may come later."""
        await self._pool.open(wait=False)
        try:
            yield
        finally:
            if self._running:
                await asyncio.wait(self._running, timeout=_CLOSE_TIMEOUT)
            # Nobody waits for an answer any more, and budgets may be long.
            for lease in self._working.values():
                lease.expire()
            if self._running:
                await asyncio.wait(self._running)
            self._ask_anew.abort()
            await self.breaker.stop()
            await self._pool.close(_CLOSE_TIMEOUT)

    @property
    def stats(self) -> PoolStats:
        """The pool now."""
        # The probe's borrowed connection is no work.
        in_use = sum(lease.connection is not None for lease in self._working.values())
        return PoolStats(
            size=self._size,
            idle=self._pool.get_stats().get("pool_available", 0),
            in_use=in_use,
            waiting=len(self._working) - in_use,
        )

    def deadline(self, budget: float) -> float:
        """When work that begins now must end, in the clock of the event loop; its connection is severed then."""
        return asyncio.get_running_loop().time() + budget * _SEVER_AT

    async def run(
        self,
        work: Work[Result],
        *,
        budget: float,
        writes: bool = False,
        repeatable: Callable[[], bool] = lambda: True,
        proves: bool = True,
    ) -> Result:
        """What `work` answers.

        Args:
            work: what to do with a connection.
            budget: seconds until this method has returned or raised.
            writes: whether the work writes, and so may use only some of the connections.
            repeatable: whether the work may be done again when its connection turns out to be dead.
            proves: whether it reads what the probe reads, so that its success says that the database can be asked.

        Raises:
            StorageError: it could not be done in time, or at all, or the database is known to be down.
        """
        if (error := self.breaker.error) is not None:
            await asyncio.sleep(0)  # whoever asks again and again must not keep the loop from noticing that it is back
            raise type(error)
        loop = asyncio.get_running_loop()
        lease = _Lease()
        deadline = self.deadline(budget)
        expiry = loop.call_at(deadline, lease.expire)
        task = loop.create_task(self._within(deadline, lease, work, repeatable, writes=writes))
        task.add_done_callback(lambda _: expiry.cancel())
        self._track(task)
        self._working[task] = lease
        task.add_done_callback(self._working.pop)
        try:
            result = await self._answer(task, lease, budget, writes=writes)
        except (DatabaseUnreachable, DatabaseTimeout, DatabaseStale):
            self.breaker.start_probing()
            raise
        if proves:
            self.breaker.record_success()
        return result

    async def _answer(self, task: asyncio.Task[Result], lease: _Lease, budget: float, *, writes: bool) -> Result:
        done, _ = await asyncio.wait((task,), timeout=min(budget, _SUSPICIOUS_AFTER))
        if not done and budget > _SUSPICIOUS_AFTER:
            self.breaker.start_probing()
            left = budget - _SUSPICIOUS_AFTER
            if writes:
                # Whether a write happened is worth more to its caller than the time.
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

    async def _probe(self) -> StorageError | None:
        error = await self._ask_anew()
        # A server that is full, or that has a new password, refuses new connections while those that stand work on.
        if error is None or isinstance(error, DatabaseTimeout) or not await self._old_connection_answers():
            return error
        return None

    async def _old_connection_answers(self) -> bool:
        loop = asyncio.get_running_loop()
        lease = _Lease()
        deadline = loop.time() + _SUSPICIOUS_AFTER
        expiry = loop.call_at(deadline, lease.expire)
        try:
            while self.stats.idle:  # those that are dead leave it
                try:
                    await self._once(deadline, lease, self._ask)
                except psycopg.OperationalError as error:
                    if lease.expired or not _connection_lost(error):
                        return False
                except Exception:  # noqa: BLE001 - a look that ends in any error did not get an answer
                    return False
                else:
                    return True
            return False
        finally:
            expiry.cancel()

    def _on_change(self, error: StorageError | None) -> None:
        if error is not None:
            self._replace_idle_connections()

    def _distrust_idle_connections(self) -> None:
        """Replaces the connections that wait in the pool: where one got no answer, the others may not either."""
        if asyncio.get_running_loop().time() - self._drained_at > _DRAIN_EVERY:
            self._replace_idle_connections()

    def _replace_idle_connections(self) -> None:
        loop = asyncio.get_running_loop()
        self._drained_at = loop.time()
        self._track(loop.create_task(self._pool.drain()))

    def _track(self, task: asyncio.Task[Any]) -> None:
        """Keeps a task until it has ended, and looks at its error, or asyncio complains when the caller has gone."""

        def ended(task: asyncio.Task[Any]) -> None:
            self._running.discard(task)
            if not task.cancelled():
                task.exception()

        self._running.add(task)
        task.add_done_callback(ended)

    async def _within(
        self, deadline: float, lease: _Lease, work: Work[Result], repeatable: Callable[[], bool], *, writes: bool
    ) -> Result:
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout_at(deadline):
                    # Some connections are for reads alone: writes may all wait for one row's lock.
                    for slots in (self._write_slots, self._slots) if writes else (self._slots,):
                        await held.enter_async_context(slots)
            except TimeoutError:
                raise DatabaseTimeout from None
            try:
                return await self._repeatedly(deadline, lease, work, repeatable)
            except RequestError:
                raise
            except StaleSession as error:
                raise DatabaseStale from error
            except Exception as error:
                raise storage_error(error) from error

    async def _repeatedly(
        self, deadline: float, lease: _Lease, work: Work[Result], repeatable: Callable[[], bool]
    ) -> Result:
        for _ in range(self._size):
            try:
                return await self._once(deadline, lease, work)
            except StaleSession:
                if not repeatable():
                    raise
                continue  # before anything was written; this connection is gone, and a new one may lead elsewhere
            except psycopg.OperationalError as error:
                if lease.expired:
                    raise DatabaseTimeout from error
                if not (_connection_lost(error) and repeatable()):
                    raise
        return await self._once(deadline, lease, work)

    async def _connection(self, deadline: float, lease: _Lease) -> Connection:
        loop = asyncio.get_running_loop()
        while not lease.expired and (left := deadline - loop.time()) > 0:
            try:
                # In short turns: whoever needs none any more must not wait on.
                return await self._pool.getconn(timeout=min(left, _TURN))
            except PoolTimeout:
                continue
        failure = self._connection_class.last_failure
        raise DatabaseTimeout if failure is None else connect_error_kind(failure)

    async def _once(self, deadline: float, lease: _Lease, work: Work[Result]) -> Result:
        connection = await self._connection(deadline, lease)
        lease.connection = connection
        try:
            if lease.expired:
                raise DatabaseTimeout
            return await work(connection)
        except (StaleSession, psycopg.errors.ReadOnlySqlTransaction) as error:
            await connection.close()
            raise StaleSession from error
        except ForeignSession as error:
            await connection.close()
            raise SchemaNotReady from error
        finally:
            lease.connection = None
            if lease.expired:
                # The answer may have come in the same moment: a severed connection that looks healthy must not be lent on.
                await connection.close()
                self._distrust_idle_connections()
            await self._pool.putconn(connection)


def _connection_lost(error: psycopg.OperationalError) -> bool:
    if error.diag.severity_nonlocalized == "ERROR":
        return False  # said by a function, whatever its code: the session goes on
    return error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))
