"""Asks the database once whether it answers, on a connection that nobody else uses."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import psycopg

from billing_grpc.errors import DatabaseStale, DatabaseTimeout, DatabaseUnreachable, StorageError
from billing_grpc.storage.postgres.connection import CONNECT_ERRORS, Connection
from billing_grpc.storage.postgres.driver_errors import connect_error_kind, error_kind

_SHORTEST: Final = 0.5
"""Seconds a probe gets where calls get less: it has to connect first."""


class DatabaseProbe:
    """Connects, reads what calls read, and closes.

    A connection of the pool's would tell less: that one may be dead while the database is well, and all of them may be
    taken by writes that wait for somebody else's lock.

    Args:
        connection_class: the pool's, which knows how a session is prepared.
        connect: what psycopg needs to connect.
        read: what calls do to a connection.
        longest_budget: the longest budget, in seconds, that any call is given.
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
        self._in_haste = False
        self._reading: set[Connection] = set()

    async def __call__(self) -> StorageError | None:
        """Why the database cannot be asked; None when it answered, be it with an error about the schema or a right."""
        # Of two that overlap the second takes its time: libpq tries one address after the other, and a server may be slow.
        if self._in_haste:
            return await self._ask(None)
        self._in_haste = True
        try:
            return await self._ask(self._within)
        finally:
            self._in_haste = False

    def hurry(self) -> None:
        """Ends the reading that goes on, because nobody needs its answer any more."""
        for connection in self._reading:
            connection.sever()

    async def _ask(self, patience: float | None) -> StorageError | None:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        try:
            connection = await self._connection_class.attempt(patience, **self._connect)
        except (TimeoutError, psycopg.errors.ConnectionTimeout):
            return DatabaseTimeout()
        except CONNECT_ERRORS as error:
            return connect_error_kind(str(error))()
        deadline = (loop.time() if patience is None else asked) + self._within
        timer = loop.call_at(deadline, connection.sever)
        self._reading.add(connection)
        try:
            await self._read(connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer or none
            kind = DatabaseTimeout if loop.time() >= deadline else error_kind(error)
            return kind() if kind in {DatabaseTimeout, DatabaseUnreachable, DatabaseStale} else None
        finally:
            timer.cancel()
            self._reading.discard(connection)
            await connection.close()
        return None
