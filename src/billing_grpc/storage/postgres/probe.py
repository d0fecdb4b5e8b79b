"""The availability probe: find out whether the database answers."""

import asyncio
from typing import Any, Final

import psycopg

from billing_grpc.errors import DatabaseStale, DatabaseTimeout, DatabaseUnreachable, StorageError
from billing_grpc.storage.postgres.budgets import SUSPICIOUS_AFTER
from billing_grpc.storage.postgres.connecting import CONNECT_ERRORS, PersistentConnection
from billing_grpc.storage.postgres.driver_errors import connect_error_kind, error_kind
from billing_grpc.storage.postgres.lending import ConnectionLender, Lease, Work, is_lost

_SHORTEST: Final = 0.5
"""The least number of seconds for a probe, also if calls get less: a probe has to connect first."""


class DatabaseProbe:
    """Connect, run the query of a call, and close the connection. If the server refuses, ask an idle connection instead.

    An idle connection alone would prove less. It may be dead while the database works, and writes that wait for a lock may
    hold all connections of the pool.

    Args:
        connection_class: the connection class of the pool, which prepares the session.
        connect: psycopg's connection arguments.
        query: the query of a call.
        longest_budget: the longest budget of a call, in seconds.
        lender: lends the idle connections.
    """

    def __init__(
        self,
        connection_class: type[PersistentConnection],
        connect: dict[str, Any],
        query: Work[object],
        longest_budget: float,
        lender: ConnectionLender,
    ) -> None:
        self._connection_class = connection_class
        self._connect = connect
        self._query = query
        self._time_limit = max(longest_budget, _SHORTEST)
        self._lender = lender
        self._limited_probe_runs = False
        self._querying: set[PersistentConnection] = set()

    async def __call__(self) -> StorageError | None:
        """Return why the database cannot be asked; None if it answered, also with an error about the schema or a right."""
        error = await self._probe_new_connection()
        # A server that is full, or has a new password, refuses new connections while the open ones still work.
        if error is None or isinstance(error, DatabaseTimeout) or not await self._idle_connection_answers():
            return error
        return None

    def abort(self) -> None:
        """End the running queries, whose results are no longer needed."""
        for connection in self._querying:
            connection.sever()

    async def _probe_new_connection(self) -> StorageError | None:
        # If two probes overlap, the second connects without a time limit: libpq tries the addresses one by one, and a server
        # may be slow.
        if self._limited_probe_runs:
            return await self._connect_and_query(None)
        self._limited_probe_runs = True
        try:
            return await self._connect_and_query(self._time_limit)
        finally:
            self._limited_probe_runs = False

    async def _connect_and_query(self, time_limit: float | None) -> StorageError | None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            connection = await self._connection_class.connect_once(time_limit, **self._connect)
        except (TimeoutError, psycopg.errors.ConnectionTimeout):
            return DatabaseTimeout()
        except CONNECT_ERRORS as error:
            return connect_error_kind(str(error))()
        deadline = (loop.time() if time_limit is None else began) + self._time_limit
        timer = loop.call_at(deadline, connection.sever)
        self._querying.add(connection)
        try:
            await self._query(connection)
        except Exception as error:  # noqa: BLE001 - `error_kind` says which errors mean that it is down
            kind = DatabaseTimeout if loop.time() >= deadline else error_kind(error)
            return kind() if kind in {DatabaseTimeout, DatabaseUnreachable, DatabaseStale} else None
        finally:
            timer.cancel()
            self._querying.discard(connection)
            await connection.close()
        return None

    async def _idle_connection_answers(self) -> bool:
        loop = asyncio.get_running_loop()
        lease = Lease(loop.time() + SUSPICIOUS_AFTER)
        timer = loop.call_at(lease.deadline, lease.expire)
        try:
            while self._lender.idle:  # a dead connection leaves the pool when it is used
                try:
                    await self._lender.lend(lease, self._query)
                except psycopg.OperationalError as error:
                    if lease.expired or not is_lost(error):
                        return False
                except Exception:  # noqa: BLE001 - without an answer, the reason does not matter
                    return False
                else:
                    return True
            return False
        finally:
            timer.cancel()
