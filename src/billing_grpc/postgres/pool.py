"""A connection pool that gives every piece of work a budget and keeps to it, whatever the database does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncRawCursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from billing_grpc.errors import DatabaseTimeout, SettingsError, StorageError
from billing_grpc.postgres.connection import CONNECT_TIMEOUT, Connection
from billing_grpc.postgres.translation import connect_error_kind, storage_error

Result = TypeVar("Result")
Work = Callable[[Connection], Awaitable[Result]]

# What the network may hide: a peer that vanished is noticed within these bounds even while nobody waits for it.
_CONNECTION_DEFAULTS: Final[dict[str, str | int]] = {
    "application_name": "billing_grpc",
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 900,
}
_SEVER_AT: Final = 0.9
"""The part of a budget after which a connection is severed; the rest is for what follows from it."""
_STATEMENT_AT: Final = 0.85
"""The part of the longest budget after which the server ends a statement itself, and the connection survives."""
_CLOSE_TIMEOUT: Final = 1.0
_DRAIN_EVERY: Final = 1.0
"""Seconds between two replacements of all idle connections: a table that is locked for long must not churn them."""


def server_timeout(budget: float, used: float = 0) -> str:
    """After how long the server is to end a statement, as Postgres takes it.

    Args:
        budget: of the call, in seconds.
        used: the seconds of it that are over, as spent waiting for a connection.
    """
    return f"{max(1, int((budget * _STATEMENT_AT - used) * 1000))}ms"


def parse_address(database_url: str) -> dict[str, Any]:
    """The parts of an address.

    Raises:
        SettingsError: libpq does not understand it.
    """
    try:
        return conninfo_to_dict(database_url)
    except psycopg.ProgrammingError:
        # Without the driver's text, which repeats the address and the password in it.
        raise SettingsError(["not a Postgres address that libpq understands"]) from None


@dataclass(frozen=True, slots=True)
class PoolStats:
    """How the pool is doing: connections that exist, that nobody uses, that work; calls that wait for one."""

    size: int
    idle: int
    in_use: int
    waiting: int


@dataclass(slots=True)
class _Lease:
    """The connection that a piece of work holds at this moment, and whether its time is up."""

    connection: Connection | None = None
    expired: bool = False

    def expire(self) -> None:
        self.expired = True
        if self.connection is not None:
            self.connection.sever()


class BoundedPool:
    """Runs work on pooled connections; every answer comes within its budget.

    A query is never cancelled: cancelling asks the server, and a hung one holds the caller for ten seconds. Each piece of
    work is a task of its own, and when its time is up its socket is shut down, which ends it at once. A caller that goes
    away leaves its work to finish in peace.
    """

    def __init__(self, database_url: str, *, size: int, longest_budget: float) -> None:
        """Prepares the pool; nothing connects before `open`.

        Raises:
            SettingsError: the address is not one that libpq understands.
        """
        given = parse_address(database_url)

        class PooledConnection(Connection):
            """Remembers failures for this pool alone."""

            statement_timeout = server_timeout(longest_budget)

        self._connection_class = PooledConnection
        self._pool: AsyncConnectionPool[PooledConnection] = AsyncConnectionPool(
            make_conninfo(database_url, **{k: v for k, v in _CONNECTION_DEFAULTS.items() if k not in given}),
            connection_class=PooledConnection,
            kwargs={"autocommit": True, "cursor_factory": AsyncRawCursor},
            min_size=size,
            max_size=size,
            num_workers=size,
            # After a failure the pool gives up soon and starts afresh at the next request; longer means ever longer pauses.
            reconnect_timeout=1,
            open=False,
        )
        # As many as there are connections: who waits for the pool then waits for a connection that does not exist yet, and
        # never behind others, in a queue of the pool's that the dead do not leave.
        self._slots = asyncio.Semaphore(size)
        self._waiting = 0
        self._attempts = size + 1
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
                await asyncio.wait(self._running)  # each within its budget
            await self._pool.close(_CLOSE_TIMEOUT)

    def stats(self) -> PoolStats:
        """How the pool is doing."""
        stats = self._pool.get_stats()
        size, idle = stats["pool_size"], stats["pool_available"]
        return PoolStats(size, idle, size - idle, self._waiting)

    async def run(self, work: Work[Result], *, budget: float, repeatable: bool) -> Result:
        """What `work` answers.

        Args:
            work: what to do with a connection; reads or writes in one statement.
            budget: seconds until this method has returned or raised.
            repeatable: whether the work may be done again when its connection turns out to be dead.

        Raises:
            StorageError: it could not be done in time, or at all.
        """
        loop = asyncio.get_running_loop()
        lease = _Lease()
        deadline = loop.time() + budget * _SEVER_AT
        expiry = loop.call_at(deadline, lease.expire)
        task = loop.create_task(self._within(deadline, lease, work, repeatable=repeatable))
        task.add_done_callback(lambda _: expiry.cancel())
        self._track(task)
        done, _ = await asyncio.wait((task,), timeout=budget)
        if not done:
            raise DatabaseTimeout
        return task.result()

    def _distrust_idle_connections(self) -> None:
        """Replaces the connections that wait in the pool: where one got no answer, the others may not either."""
        now = asyncio.get_running_loop().time()
        if now - self._drained_at > _DRAIN_EVERY:
            self._drained_at = now
            self._track(asyncio.get_running_loop().create_task(self._pool.drain()))

    def _track(self, task: asyncio.Task[Any]) -> None:
        """Keeps a task until it has ended, and looks at its error, or asyncio complains when the caller has gone."""

        def ended(task: asyncio.Task[Any]) -> None:
            self._running.discard(task)
            if not task.cancelled():
                task.exception()

        self._running.add(task)
        task.add_done_callback(ended)

    async def _within(self, deadline: float, lease: _Lease, work: Work[Result], *, repeatable: bool) -> Result:
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            raise DatabaseTimeout from None
        finally:
            self._waiting -= 1
        try:
            attempts = self._attempts if repeatable else 1
            while True:
                attempts -= 1
                try:
                    return await self._once(deadline, lease, work)
                except psycopg.OperationalError as error:
                    if lease.expired:
                        raise DatabaseTimeout from error
                    if attempts and _connection_lost(error):
                        continue
                    raise storage_error(error) from error
        except StorageError:
            raise
        except Exception as error:
            raise storage_error(error) from error
        finally:
            self._slots.release()

    async def _once(self, deadline: float, lease: _Lease, work: Work[Result]) -> Result:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DatabaseTimeout
        try:
            connection = await self._pool.getconn(timeout=left)
        except PoolTimeout as error:
            failure = self._connection_class.last_failure
            raise (DatabaseTimeout if failure is None else connect_error_kind(failure)) from error
        lease.connection = connection
        try:
            if lease.expired:
                raise DatabaseTimeout
            return await work(connection)
        finally:
            lease.connection = None
            if lease.expired:
                # The answer may have come in the same moment: a severed connection that looks healthy must not be lent on.
                await connection.close()
                self._distrust_idle_connections()
            await self._pool.putconn(connection)


def _connection_lost(error: psycopg.OperationalError) -> bool:
    return error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))
