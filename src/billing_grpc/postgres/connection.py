"""The connection that the pool hands out, and how to end one that hangs."""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Any, ClassVar, Final, Self

import psycopg
import structlog
from psycopg import AsyncRawCursor
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format

log = structlog.stdlib.get_logger(__name__)

CONNECT_TIMEOUT: Final = 2
"""Seconds; libpq's floor."""

# Not in the startup packet, where pgbouncer refuses such things. Rows that a policy hides would look like workspaces that do
# not exist, and inherit: an error instead closes. A write reads after it has got its lock, which only "read committed" does.
_SESSION: Final = """
SET statement_timeout = '{statement_timeout}';
SET row_security = off;
SET default_transaction_isolation = 'read committed'
"""
_RETRY_FOR: Final = 0.55
_RETRY_QUICK: Final = 0.2
_RETRY_DELAYS: Final = (0.05, 0.1)


class _TextAsBytes(Loader):
    """Leaves text undecoded, so that one row that is not UTF-8 does not take the others down with it."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class Connection(psycopg.AsyncConnection[Any]):
    """A connection in autocommit mode with one cursor for life, which costs a fifth less than one for each query.

    Subclassed once for each pool: what the class remembers, it remembers for that pool.

    Attributes:
        last_failure: the text of the last failed connect; None since the last successful one.
        statement_timeout: after how long the server itself ends a statement, so that none outlives the longest call.
    """

    last_failure: ClassVar[str | None] = None
    statement_timeout: ClassVar[str] = "0"

    cur: AsyncRawCursor[Any]

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """A ready connection.

        The pool waits a second before it tries again; a server that is just restarting refuses for a tenth of that, so
        quick refusals are retried here.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        attempt = 0
        while True:
            attempted = loop.time()
            try:
                connection = await super().connect(*args, **kwargs)
                await cls._prepare(connection)
            except psycopg.OperationalError as error:
                cls._remember(str(error).strip())
                delay = _RETRY_DELAYS[min(attempt, len(_RETRY_DELAYS) - 1)]
                now = loop.time()
                if now - attempted > _RETRY_QUICK or now + delay - started > _RETRY_FOR:
                    raise
                await asyncio.sleep(delay)
                attempt += 1
            else:
                cls.last_failure = None
                return connection

    @classmethod
    async def _prepare(cls, connection: Self) -> None:
        connection.adapters.register_loader("text", _TextAsBytes)
        connection.cur = AsyncRawCursor(connection)
        # A server that hangs right here is cut off.
        cut_off = asyncio.get_running_loop().call_later(CONNECT_TIMEOUT, connection.sever)
        try:
            await connection.cur.execute(_SESSION.format(statement_timeout=cls.statement_timeout))
            # Not on every platform. Where it is, a session whose caller has cut the connection ends soon: it neither holds
            # one of the server's few places nor writes what nobody waits for any more.
            with suppress(psycopg.errors.InvalidParameterValue):
                await connection.cur.execute("SET client_connection_check_interval = 100")
        finally:
            cut_off.cancel()

    @classmethod
    def _remember(cls, failure: str) -> None:
        if failure != cls.last_failure:
            log.warning("cannot connect to the database", text=failure)
        cls.last_failure = failure

    def sever(self) -> None:
        """Shuts the socket down, so that whoever waits for the server stops waiting at once.

        Not a cancellation: that asks the server, which may be the one that hangs. Runs on the event loop's thread only,
        and on a duplicate, because the descriptor itself is libpq's to close.
        """
        if self.closed:
            return
        with socket.socket(fileno=os.dup(self.pgconn.socket)) as duplicate:
            try:
                duplicate.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # the peer was faster
