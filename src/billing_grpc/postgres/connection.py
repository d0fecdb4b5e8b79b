"""The connection that the pool hands out, and how to end one that hangs."""

import asyncio
import socket
import traceback
from collections.abc import Awaitable, Callable
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

CONNECT_ERRORS: Final = (psycopg.Error, OSError, UnicodeError)
"""What a connect fails with; the last where a host's name cannot be put into the form that name services take."""

# Not in the startup packet, where pgbouncer refuses such things. Rows that a policy hides would look like workspaces that do
# not exist, and inherit: an error instead closes. A write reads after it has got its lock, which only "read committed" does.
_SESSION: Final = """
SET statement_timeout = '{statement_timeout}';
SET row_security = off;
SET default_transaction_isolation = 'read committed'
"""
_ANY_TEXT: Final = {"utf-8", "ascii"}
"""Python's names of the encodings in which every text can be sent; the second is that of a database that takes any bytes."""

_FIRST_PATIENCE: Final = 0.5
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.4


async def _at_once() -> bool:
    return True


def _let_go(error: BaseException | None) -> None:
    """Ends a circle: an error holds frames, which hold the error, and the socket of a connect that was given up."""
    if error is not None:
        traceback.clear_frames(error.__traceback__)


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
        may_connect: returns when a connection is worth an attempt; False when none is needed any more.
        statement_timeout: after how long the server itself ends a statement, so that none outlives the longest call.
    """

    last_failure: ClassVar[str | None] = None
    may_connect: ClassVar[Callable[[], Awaitable[bool]]] = staticmethod(_at_once)
    statement_timeout: ClassVar[str] = "0"

    cur: AsyncRawCursor[Any]

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """A ready connection: tries until there is one, and not while the database is known to be down.

        The pool's own retries pause for a second, and a database that is back would be left waiting for them.

        Raises:
            psycopg.OperationalError: the pool closes, and nobody needs it any more.
        """
        patience, pause = _FIRST_PATIENCE, _FIRST_PAUSE
        while await cls.may_connect():
            try:
                return await cls.attempt(patience, *args, **kwargs)
            except TimeoutError:
                # Soon, because what a network has lost stays lost; and with more time, because the server may be slow.
                patience *= 2
            except CONNECT_ERRORS:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        raise psycopg.OperationalError("the pool closes")

    @classmethod
    async def attempt(cls, patience: float | None, *args: Any, **kwargs: Any) -> Self:
        """A ready connection, from one attempt.

        Args:
            patience: seconds for connecting, and again for preparing the session; None leaves it to libpq, which gives
                every address `CONNECT_TIMEOUT`.
            args: as psycopg takes them.
            kwargs: as psycopg takes them.

        Raises:
            TimeoutError: not connected within `patience`.
            psycopg.Error: the server refused.
            OSError: there is no descriptor left for the socket.
            UnicodeError: the address is one that no name service can be asked for.
        """
        try:
            async with asyncio.timeout(patience):  # before there is a query, cancelling asks nobody
                connection = await super().connect(*args, **kwargs)
            await cls._prepare(connection, CONNECT_TIMEOUT if patience is None else patience)
        except TimeoutError as error:
            _let_go(error.__cause__)
            raise
        except CONNECT_ERRORS as error:
            cls._remember(str(error).strip())
            _let_go(error)
            raise
        cls.last_failure = None
        return connection

    async def _prepare(self, patience: float) -> None:
        if self.info.encoding in _ANY_TEXT:
            self.adapters.register_loader("text", _TextAsBytes)
        self.cur = AsyncRawCursor(self)
        # A server that hangs right here is cut off.
        cut_off = asyncio.get_running_loop().call_later(patience, self.sever)
        try:
            await self.cur.execute(_SESSION.format(statement_timeout=self.statement_timeout))
            # Not on every platform. Where it is, a session whose caller has cut the connection ends soon: it neither holds
            # one of the server's few places nor writes what nobody waits for any more.
            with suppress(psycopg.errors.InvalidParameterValue):
                await self.cur.execute("SET client_connection_check_interval = 100")
        except psycopg.Error:
            await self.close()
            raise
        finally:
            cut_off.cancel()

    @classmethod
    def _remember(cls, failure: str) -> None:
        if failure != cls.last_failure:
            log.warning("cannot connect to the database", text=failure)
        cls.last_failure = failure

    def storable(self, text: str) -> str:
        """The text as a database of another encoding than UTF-8 can store it, with a question mark for what it cannot."""
        encoding = self.info.encoding
        return text if encoding in _ANY_TEXT else text.encode(encoding, "replace").decode(encoding)

    def sever(self) -> None:
        """Shuts the socket down, so that whoever waits for the server stops waiting at once.

        Not a cancellation: that asks the server, which may be the one that hangs. Runs on the event loop's thread only.
        Needs no descriptor of its own: there may be none left.
        """
        if self.closed:
            return
        borrowed = socket.socket(fileno=self.pgconn.socket)
        try:
            borrowed.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the peer was faster
        finally:
            borrowed.detach()  # the descriptor is libpq's to close
