"""The availability probe: ask the database once whether it answers, on a connection of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import psycopg

from billing_grpc.errors import DatabaseStale, DatabaseTimeout, DatabaseUnreachable, StorageError
from billing_grpc.storage.postgres.connection import CONNECT_ERRORS, Connection
from billing_grpc.storage.postgres.driver_errors import connect_error_kind, error_kind

_SHORTEST: Final = 0.5
"""The least number of seconds for a probe, also if calls get less: a probe has to connect first."""


class DatabaseProbe:
    """Connect, run the query of a call, and close the connection.

    A pooled connection would prove less. It may be dead while the database works, and writes that wait for a lock may hold
    all of them.

    Args:
        connection_class: the connection class of the pool, which prepares the session.
        connect: psycopg's connection arguments.
        read: the query of a call.
        longest_budget: the longest budget of a call, in seconds.
    """

    def __init__(
        self,
        connection_class: type[Connection],
        connect: dict[str, Any],
        read: Callable[[Connection], Awaitable[object]],
        longest_budget: float,
    ) -> None:
        self._connection_class = connection_class
        self._connect = connect
        self._read = read
        self._within = max(longest_budget, _SHORTEST)
        self._bounded = False
        self._reading: set[Connection] = set()

    async def __call__(self) -> StorageError | None:
        """Return why the database cannot be asked; None if it answered, also with an error about the schema or a right."""
        # If two probes overlap, the second connects without a time limit: libpq tries the addresses one by one, and a server
        # may be slow.
        if self._bounded:
            return await self._ask(None)
        self._bounded = True
        try:
            return await self._ask(self._within)
        finally:
            self._bounded = False

    def abort(self) -> None:
        """End the running query, whose result is no longer needed."""
        for connection in self._reading:
            connection.sever()

    async def _ask(self, time_limit: float | None) -> StorageError | None:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        try:
            connection = await self._connection_class.attempt(time_limit, **self._connect)
        except (TimeoutError, psycopg.errors.ConnectionTimeout):
            return DatabaseTimeout()
        except CONNECT_ERRORS as error:
            return connect_error_kind(str(error))()
        deadline = (loop.time() if time_limit is None else asked) + self._within
        timer = loop.call_at(deadline, connection.sever)
        self._reading.add(connection)
        try:
            await self._read(connection)
        except Exception as error:  # noqa: BLE001 - every error means either that the database answered or that it did not
            kind = DatabaseTimeout if loop.time() >= deadline else error_kind(error)
            return kind() if kind in {DatabaseTimeout, DatabaseUnreachable, DatabaseStale} else None
        finally:
            timer.cancel()
            self._reading.discard(connection)
            await connection.close()
        return None
