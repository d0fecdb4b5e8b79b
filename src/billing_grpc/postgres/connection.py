"""The connection that the pool hands out, and how to end one that hangs."""

import asyncio
import socket
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, LiteralString, Self

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

# A transaction pooler gives each transaction whichever session of the server is free, with whatever others have set in it.
# The server's process tells: a pooler invents the process id that it announces to its clients.
_LOOK: Final = """
SELECT pg_backend_pid(),
       (SELECT reset_val FROM pg_settings WHERE name = 'search_path'),
       (SELECT reset_val FROM pg_settings WHERE name = 'role')
"""
# Only where the session is ours alone. What an answer relies on never stands here: each read proves its own.
_SESSION: Final = "SET statement_timeout = '{statement_timeout}'; SET default_transaction_isolation = 'read committed'"
# Elsewhere each transaction begins with this: `workspaces` is the table that a new session would find, and a statement that
# its caller has given up ends.
_OWN_TRANSACTION: Final = """
SELECT set_config('statement_timeout', $1, true), set_config('search_path', $2, true), set_config('role', $3, true)
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


def as_text(value: bytes | str, errors: str = "strict") -> str:
    """Return a text that `_TextAsBytes` may have left undecoded; `errors` as `bytes.decode` takes it."""
    return value.decode(errors=errors) if isinstance(value, bytes) else value


class _TextAsBytes(Loader):
    """Leaves text undecoded, so that one row that is not UTF-8 does not take the others down with it."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class Connection(psycopg.AsyncConnection[Any]):
    """A connection in autocommit mode with one cursor for life, which costs a fifth less than one for each query.

    Subclassed once for each pool: what the class remembers, it remembers for that pool.

    Attributes:
        direct: whether the session is ours alone; a pooler may put each transaction into another one.
        last_failure: the text of the last failed connect; None since the last successful one.
        may_connect: returns when a connection is worth an attempt; False when none is needed any more.
        statement_timeout: after how long the server itself ends a statement, so that none outlives the longest call.
    """

    last_failure: ClassVar[str | None] = None
    may_connect: ClassVar[Callable[[], Awaitable[bool]]] = staticmethod(_at_once)
    statement_timeout: ClassVar[str] = "0"

    cur: AsyncRawCursor[Any]
    direct: bool
    _own_transaction: tuple[str, str, str]

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
            await self.cur.execute(_LOOK)
            pid, search_path, role = await self.cur.fetchone() or (None, "", "")
            self.direct = pid == self.pgconn.backend_pid
            self._own_transaction = (self.statement_timeout, as_text(search_path), as_text(role))
            if self.direct:
                await self.cur.execute(_SESSION.format(statement_timeout=self.statement_timeout))
                # Not on every platform. Where it is, a session whose caller has cut the connection ends soon and holds
                # none of the server's few places.
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

    async def read(self, query: LiteralString, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """The rows that one statement answers, which sees the schema as a new session would.

        Raises:
            psycopg.Error: the statement failed.
        """
        if self.direct:
            await self.cur.execute(query, parameters, binary=True)
            return await self.cur.fetchall()
        async with self.pipeline():  # up to its end one transaction, in one round trip
            await self.begin_own()
            cursor = await self.execute(query, parameters, binary=True)
        return await cursor.fetchall()

    async def begin_own(self) -> None:
        """Makes the transaction that has just begun see the schema as a new session would, wherever it runs."""
        if not self.direct:
            await self.execute(_OWN_TRANSACTION, self._own_transaction)

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
