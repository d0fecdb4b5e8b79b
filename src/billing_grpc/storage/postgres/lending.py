"""Lend pooled connections: to one piece of work at a time, until its deadline, and never a connection that is suspect."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from billing_grpc.errors import DatabaseTimeout, SchemaNotReady
from billing_grpc.storage.postgres.connecting import PersistentConnection
from billing_grpc.storage.postgres.connection import Connection, ForeignSession
from billing_grpc.storage.postgres.driver_errors import connect_error_kind
from billing_grpc.storage.postgres.standing import StaleSession

Result = TypeVar("Result")
Work = Callable[[Connection], Awaitable[Result]]

_CONNECT_AT_ONCE: Final = 2
"""How many connections are made at the same time, so that a database that has just come back is not flooded."""

_WAIT_STEP: Final = 0.25
"""The longest wait for a connection, in seconds, before the lease is looked at again."""

_REPLACE_EVERY: Final = 1.0
"""Seconds between two replacements of all idle connections, so that a table locked for long does not cause one for each
call."""


@dataclass(slots=True)
class Lease:
    """The connection that a piece of work holds.

    Attributes:
        deadline: when the time of the work is up, in the clock of the event loop.
        connection: None while the work waits for a connection.
        expired: whether the time of the work is up.
    """

    deadline: float
    connection: Connection | None = None
    expired: bool = False
    _timer: asyncio.TimerHandle | None = None

    def renew(self, deadline: float) -> None:
        """Give the work time until `deadline`."""
        self.end()
        self.deadline = deadline
        self._timer = asyncio.get_running_loop().call_at(deadline, self.expire)

    def end(self) -> None:
        """Stop the timer: the work is done."""
        if self._timer is not None:
            self._timer.cancel()

    def expire(self) -> None:
        """End the lease: sever its connection, which ends the work at once."""
        self.expired = True
        if self.connection is not None:
            self.connection.sever()


class ConnectionLender:
    """Lends the connections of a pool. Connections that died or hung are replaced."""

    def __init__(
        self, conninfo: str, connection_class: type[PersistentConnection], kwargs: dict[str, Any], size: int
    ) -> None:
        """Prepare the pool. It connects from `open` on.

        Args:
            conninfo: the address.
            connection_class: makes the connections, and remembers why it could not.
            kwargs: psycopg's connection arguments.
            size: how many connections to hold.
        """
        self._connection_class = connection_class
        self._pool: AsyncConnectionPool[PersistentConnection] = AsyncConnectionPool(
            conninfo,
            connection_class=connection_class,
            kwargs=kwargs,
            min_size=size,
            max_size=size,
            num_workers=_CONNECT_AT_ONCE,
            open=False,
        )
        self._size = size
        self._replacing: set[asyncio.Task[None]] = set()
        self._replaced_at = -_REPLACE_EVERY

    @property
    def idle(self) -> int:
        """How many connections are ready and not lent."""
        return int(self._pool.get_stats().get("pool_available", 0))

    async def open(self) -> None:
        """Start to connect. Return at once: the database may come later."""
        await self._pool.open(wait=False)

    async def close(self, patience: float) -> None:
        """Close all connections; wait at most `patience` seconds for the tasks that make connections."""
        if self._replacing:
            await asyncio.wait(self._replacing)
        await self._pool.close(patience)

    async def lend_until_done(self, lease: Lease, work: Work[Result], may_repeat: Callable[[], bool]) -> Result:
        """Run `work` with a connection; repeat it on another one if the connection turns out to be dead or stale.

        Args:
            lease: of this work alone.
            work: what to do with a connection.
            may_repeat: returns whether the work may be repeated now.

        Raises:
            DatabaseTimeout: the lease expired.
            StorageError: there was no connection, or the work raised it.
            StaleSession: the servers of all connections may hold old values.
            psycopg.Error: the work failed.
        """
        for _ in range(self._size):
            try:
                return await self.lend(lease, work)
            except StaleSession:
                if not may_repeat():
                    raise
                # This happens before anything is written. The connection is closed; another may lead to another server.
            except psycopg.OperationalError as error:
                if lease.expired:
                    raise DatabaseTimeout from error
                if not (is_lost(error) and may_repeat()):
                    raise
        return await self.lend(lease, work)

    async def lend(self, lease: Lease, work: Work[Result]) -> Result:
        """Run `work` with a connection, once; raise as `lend_until_done`, and the error of a severed connection."""
        connection = await self._borrow(lease)
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
                # Also if the answer came at this moment: a severed connection looks healthy, and must not be lent again.
                await connection.close()
                self._suspect_idle_connections()
            await self._pool.putconn(connection)

    def replace_idle_connections(self) -> None:
        """Replace all connections that are not lent, in the background."""
        loop = asyncio.get_running_loop()
        self._replaced_at = loop.time()
        task = loop.create_task(self._pool.drain())
        self._replacing.add(task)
        task.add_done_callback(self._replaced)

    def _replaced(self, task: asyncio.Task[None]) -> None:
        self._replacing.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio complains

    def _suspect_idle_connections(self) -> None:
        """Replace the idle connections: if one connection got no answer, the others may not get one either."""
        if asyncio.get_running_loop().time() - self._replaced_at > _REPLACE_EVERY:
            self.replace_idle_connections()

    async def _borrow(self, lease: Lease) -> PersistentConnection:
        loop = asyncio.get_running_loop()
        while not lease.expired and (left := lease.deadline - loop.time()) > 0:
            try:
                return await self._pool.getconn(timeout=min(left, _WAIT_STEP))
            except PoolTimeout:
                continue
        failure = self._connection_class.last_failure
        raise DatabaseTimeout if failure is None else connect_error_kind(failure)


def is_lost(error: psycopg.OperationalError) -> bool:
    """Return whether the error means that the connection cannot be used any more."""
    if error.diag.severity_nonlocalized == "ERROR":
        return False  # a function raised it, whatever its code; the session goes on
    return error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))
