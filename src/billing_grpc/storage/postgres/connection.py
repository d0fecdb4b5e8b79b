"""The connection that the pool hands out, and how to end one that hangs."""

import asyncio
import socket
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, LiteralString, Self, cast

import psycopg
import structlog
from psycopg import AsyncRawCursor
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Format, TransactionStatus

from billing_grpc.errors import SchemaNotReady
from billing_grpc.storage.postgres.statements import BEGIN, COMMIT

log = structlog.stdlib.get_logger(__name__)

CONNECT_TIMEOUT: Final = 2
"""Seconds; libpq's floor."""

CONNECT_ERRORS: Final = (psycopg.Error, OSError, UnicodeError)
"""What a connect fails with; the last where a host's name cannot be put into the form that name services take."""

# Asked of the server itself: a pooler repeats to new clients what its first session was told, long after a failover. And
# a transaction pooler gives each transaction whichever session is free, with whatever others have set in it; the server's
# process tells: a pooler invents the process id that it announces to its clients.
_LOOK: Final = """
SELECT pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool,
       pg_catalog.pg_backend_pid(),
       (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'search_path'),
       coalesce((
           SELECT pg_catalog.substr(setting, 6)
           FROM pg_catalog.pg_db_role_setting, pg_catalog.unnest(setconfig) AS setting
           WHERE setting LIKE 'role=%'
               AND (setrole = 0 OR setrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user))
               AND (setdatabase = 0 OR setdatabase = (
                   SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
           ORDER BY setrole = 0, setdatabase = 0 LIMIT 1), 'none')
"""
_STALE: Final = "the server is a standby, or its session is read-only"
# Said by us, and by libpq of a server that `target_session_attrs` does not accept.
_STALE_HINTS: Final = ("session is read-only", "server is in hot standby mode")
# Only where the session is ours alone. What an answer relies on never stands here: each read proves its own.
_SESSION: Final = "SET statement_timeout = '{statement_timeout}'; SET default_transaction_isolation = 'read committed'"
# Elsewhere each transaction begins with this.
_OWN_TRANSACTION: Final = """
SELECT pg_catalog.set_config('statement_timeout', $1, true), pg_catalog.current_setting('search_path'),
       pg_catalog.current_setting('role')
"""
_FOREIGN_SESSION: Final = (
    "a session of the pooler has another search path or role than a new one, or may lack the options of DATABASE_URL:"
    " set them with ALTER ROLE billing_grpc SET ... alone, and let no other client use the pooler with this role"
)
_ANY_TEXT: Final = {"utf-8", "ascii"}
"""Python's names of the encodings in which every text can be sent; the second is that of a database that takes any bytes."""

_FIRST_PATIENCE: Final = 0.5
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.4


def is_stale(failure: str) -> bool:
    """Return whether a failed connect says that the server does not accept writes."""
    return any(hint in failure for hint in _STALE_HINTS)


def _require_writable(*, stale: bool) -> None:
    if stale:
        raise psycopg.OperationalError(_STALE)


def each_host(conninfo: str) -> list[str]:
    """Return the address once for each of its hosts, in their order."""
    parts: dict[str, Any] = conninfo_to_dict(conninfo)
    lists = {name: str(parts[name]).split(",") for name in ("host", "hostaddr", "port") if parts.get(name)}
    count = max((len(values) for name, values in lists.items() if name != "port"), default=1)
    return [
        make_conninfo(**{**parts, **{name: values[min(at, len(values) - 1)] for name, values in lists.items()}})
        for at in range(count)
    ]


async def _at_once() -> bool:
    return True


def _let_go(error: BaseException | None) -> None:
    """Ends a circle: an error holds frames, which hold the error, and the socket of a connect that was given up."""
    if error is not None:
        traceback.clear_frames(error.__traceback__)


def as_text(value: bytes | str, errors: str = "strict") -> str:
    """Return a text that `_TextAsBytes` may have left undecoded; `errors` as `bytes.decode` takes it."""
    return value.decode(errors=errors) if isinstance(value, bytes) else value


class ForeignSession(Exception):
    """A pooler's session looks `workspaces` up elsewhere than a new session would, because somebody changed its settings."""


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
    _settings: tuple[str, str]

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
    async def attempt(cls, patience: float | None, conninfo: str, **kwargs: Any) -> Self:
        """A ready connection to the first host that accepts writes, from one attempt at each.

        Args:
            patience: seconds for all hosts together, of which each gets its share for connecting, and again for preparing
                the session: one that hangs must not hide the others. None gives every host `CONNECT_TIMEOUT`.
            conninfo: the address.
            kwargs: as psycopg takes them.

        Raises:
            TimeoutError: a host did not connect within its share, and no other one could be used.
            psycopg.Error: the server refused, or does not accept writes.
            OSError: there is no descriptor left for the socket.
            UnicodeError: the address is one that no name service can be asked for.
        """
        hosts = each_host(conninfo)
        share = None if patience is None else patience / len(hosts)
        failures: list[Exception] = []
        for host in hosts:
            try:
                async with asyncio.timeout(share):  # before there is a query, cancelling asks nobody
                    connection = await cls._reach(host, **kwargs)
                await cls._prepare(connection, CONNECT_TIMEOUT if share is None else share)
            except TimeoutError as error:
                _let_go(error.__cause__)
                failures.append(error)
            except CONNECT_ERRORS as error:
                _let_go(error)
                failures.append(error)
            else:
                cls.last_failure = None
                return connection
        refusals = [error for error in failures if not isinstance(error, TimeoutError)]
        if refusals:
            cls._remember("; ".join(str(error).strip() for error in refusals))
        slow = [error for error in failures if isinstance(error, TimeoutError)]
        if slow or len(refusals) == 1:
            raise (slow or refusals)[0]
        raise psycopg.OperationalError(str(cls.last_failure)) from refusals[-1]

    @classmethod
    async def _reach(cls, conninfo: str, **kwargs: Any) -> Self:
        """A connection to the first address of this host that accepts writes, by what libpq was told.

        Where each says that it does not, the first that answers: a pooler repeats what an old server said.
        """
        try:
            return await super().connect(conninfo, **kwargs)
        except psycopg.OperationalError as error:
            if not is_stale(str(error)):
                raise
            _let_go(error)
        return await super().connect(make_conninfo(conninfo, target_session_attrs="any"), **kwargs)

    async def _prepare(self, patience: float) -> None:
        # A server that hangs right here is cut off.
        cut_off = asyncio.get_running_loop().call_later(patience, self.sever)
        try:
            if self.info.encoding in _ANY_TEXT:
                self.adapters.register_loader("text", _TextAsBytes)
            self.cur = AsyncRawCursor(self)
            await self.cur.execute(_LOOK)
            stale, pid, search_path, role = await self.cur.fetchone() or (True, None, "", "")
            _require_writable(stale=stale)
            self.direct = pid == self.pgconn.backend_pid
            self._settings = (as_text(search_path), as_text(role))
            if self.direct:
                await self.cur.execute(_SESSION.format(statement_timeout=self.statement_timeout))
                # Not on every platform. Where it is, a session whose caller has cut the connection ends soon and holds
                # none of the server's few places.
                with suppress(psycopg.errors.InvalidParameterValue):
                    await self.cur.execute("SET client_connection_check_interval = 100")
        except BaseException as error:
            await self.close()
            if isinstance(error, (ValueError, TypeError)):
                raise psycopg.OperationalError("the server's answer to the first question is none") from error
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
        if self.info.transaction_status is not TransactionStatus.IDLE:
            raise RuntimeError("a read would commit the transaction that is open; use `rows`")
        if self.direct:
            await self.cur.execute(query, parameters, binary=True)
            return await self.cur.fetchall()
        async with self.pipeline():  # one round trip
            await self.execute(BEGIN)
            own = await self.begin_own()
            cursor = await self.execute(query, parameters, binary=True)
            await self.execute(COMMIT)
        await self.require_own(own)
        return await cursor.fetchall()

    async def rows(self, query: LiteralString, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """The rows that one statement answers, in the transaction that is open.

        Raises:
            psycopg.Error: the statement failed.
        """
        return await (await self.execute(query, parameters, binary=True)).fetchall()

    async def begin_own(self) -> AsyncRawCursor[Any] | None:
        """Bound the statements of the transaction that has begun, and ask where it looks up tables; `None` if direct."""
        if self.direct:
            return None
        return cast("AsyncRawCursor[Any]", await self.execute(_OWN_TRANSACTION, [self.statement_timeout]))

    async def require_own(self, own: AsyncRawCursor[Any] | None) -> None:
        """Return if the transaction of `begin_own` saw the schema as a new session would.

        Raises:
            ForeignSession: it did not, or nobody knows.
        """
        if own is None:
            return
        _, search_path, role = await own.fetchone() or (None, None, None)
        # Wherever they come from: the address, the environment, a service file.
        options = any(each.keyword == b"options" and each.val for each in self.pgconn.info)
        if options or (search_path, role) != self._settings:
            log.warning("storage failed", reason=SchemaNotReady.reason, text=_FOREIGN_SESSION)
            raise ForeignSession

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
