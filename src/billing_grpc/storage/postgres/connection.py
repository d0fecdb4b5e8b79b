"""A connection to the database: run a statement, check the session that it ran in, and end a connection that hangs."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, LiteralString, cast

import psycopg
import structlog
from psycopg import AsyncRawCursor
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGresult

from billing_grpc.errors import SchemaNotReady
from billing_grpc.storage.postgres.exchange import KeptStatements
from billing_grpc.storage.postgres.statements import (
    BEGIN,
    CHECK_SESSION,
    COMMIT,
    INSPECT_SESSION,
    NOTICE_LOST_CLIENT,
    SET_UP_SESSION,
)
from billing_grpc.storage.postgres.texts import UNIVERSAL_ENCODINGS, TextAsBytes, as_text

log = structlog.stdlib.get_logger(__name__)

READ_ONLY: Final = "the server is a standby, or its session is read-only"
"""The error of a connection that does not accept writes."""

_CHANGED_SESSION: Final = (
    "a session of the pooler has another search path or role than a new one, or may lack the options of DATABASE_URL:"
    " set them with ALTER ROLE billing_grpc SET ... alone, and let no other client use the pooler with this role"
)
_STATEMENT_MODE: Final = "statement pooling mode"
_FOREIGN_STATEMENTS: Final = (
    "a prepared statement is not where it was made: a pooler is in between, so each read is a transaction from now on"
)
_NO_TRANSACTIONS: Final = (
    "a pooler in statement mode keeps no transaction, so no mode can be set: use pool_mode = transaction or session"
)


class ForeignSession(Exception):
    """Another client has changed the settings of this pooler's session, so `workspaces` may be another table there."""


class Connection(psycopg.AsyncConnection[Any]):
    """A connection in autocommit mode.

    Attributes:
        direct: whether this connection has its session for itself. Behind a transaction pooler, each transaction may run in
            another session.
        text_encoding: Python's name of the encoding in which texts come.
        statement_timeout: the time after which the server ends a statement, as Postgres takes it.
    """

    statement_timeout: ClassVar[str] = "0"

    direct: bool
    text_encoding: str
    # One cursor for the life of the connection costs a fifth less than a cursor for each query.
    _cursor: AsyncRawCursor[Any]
    _new_session: tuple[str, str]
    _statements: KeptStatements

    async def prepare(self, time_limit: float) -> None:
        """Inspect the session and set it up. Close the connection if that fails.

        Args:
            time_limit: seconds until a server that does not answer is cut off.

        Raises:
            psycopg.Error: the server does not accept writes, refused, or did not answer in time.
        """
        timer = asyncio.get_running_loop().call_later(time_limit, self.sever)
        try:
            encoding = self.info.encoding
            self.text_encoding = "utf-8" if encoding in UNIVERSAL_ENCODINGS else encoding
            if encoding in UNIVERSAL_ENCODINGS:
                self.adapters.register_loader("text", TextAsBytes)
            self._cursor = AsyncRawCursor(self)
            self._statements = KeptStatements(self.pgconn, self.text_encoding)
            await self._cursor.execute(INSPECT_SESSION)
            read_only, pid, search_path, role = await self._cursor.fetchone() or (True, None, "", "")
            _require_writable(read_only=read_only)
            self.direct = pid == self.pgconn.backend_pid
            self._new_session = (as_text(search_path), as_text(role))
            if self.direct:
                await self._cursor.execute(SET_UP_SESSION.format(statement_timeout=self.statement_timeout))
                # Not on every platform, and not before PostgreSQL 14.
                with suppress(psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject):
                    await self._cursor.execute(NOTICE_LOST_CLIENT)
        except BaseException as error:
            await self.close()
            # A hot standby refuses every statement of a session whose transactions are serializable by default.
            if isinstance(error, psycopg.errors.FeatureNotSupported):
                raise psycopg.OperationalError(READ_ONLY) from error
            if isinstance(error, (ValueError, TypeError)):
                raise psycopg.OperationalError("the server's description of the session cannot be read") from error
            raise
        finally:
            timer.cancel()

    async def read(self, query: LiteralString, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return the rows of one statement, which sees the schema as a new session would.

        Raises:
            ForeignSession: it may have seen another schema.
            psycopg.Error: the statement failed.
        """
        if self.info.transaction_status is not TransactionStatus.IDLE:
            raise RuntimeError("a read would commit the transaction that is open; use `rows`")
        if self.direct:
            await self._cursor.execute(query, parameters, binary=True)
            return await self._cursor.fetchall()
        return await (await self._read_in_own_transaction(query, parameters)).fetchall()

    async def fetch(self, query: LiteralString, kept: LiteralString, parameters: Sequence[str]) -> PGresult:
        """Return the result of one statement as libpq's, with values in binary format; otherwise as `read`.

        This costs less than half of `read`, and a direct connection keeps the plan. Texts come in `text_encoding`.

        Args:
            query: one statement, whose types follow from casts.
            kept: the same for `KeptStatements`.
            parameters: the values of $1, $2 and so on as ASCII text.

        Raises:
            ForeignSession: the statement may have seen another schema.
            psycopg.Error: the statement failed.
        """
        if self.direct:
            try:
                return await self._statements.run(query, kept, [each.encode() for each in parameters])
            except (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement):
                log.warning("a pooler was noticed", text=_FOREIGN_STATEMENTS)
                self.direct = False
        cursor = await self._read_in_own_transaction(query, parameters)
        return cast("PGresult", cursor.pgresult)

    async def rows(self, query: LiteralString, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return the rows of one statement in the open transaction.

        Raises:
            psycopg.Error: the statement failed.
        """
        return await (await self.execute(query, parameters, binary=True)).fetchall()

    async def _read_in_own_transaction(
        self, query: LiteralString, parameters: Sequence[object]
    ) -> psycopg.AsyncCursor[Any]:
        """Run a statement between BEGIN and COMMIT, in one round trip, and check the session that it ran in."""
        async with self.pipeline():
            await self.execute(BEGIN)
            session = await self.send_session_check()
            cursor = await self.execute(query, parameters, binary=True)
            await self.execute(COMMIT)
        await self.require_own_session(session)
        return cursor

    async def send_session_check(self) -> AsyncRawCursor[Any] | None:
        """Set the statement timeout of the transaction that has just begun, and ask for the settings of its session.

        Returns:
            What `require_own_session` takes; None if the connection is direct, because nothing needs a check there.
        """
        if self.direct:
            return None
        return cast("AsyncRawCursor[Any]", await self.execute(CHECK_SESSION, [self.statement_timeout]))

    async def require_own_session(self, check: AsyncRawCursor[Any] | None) -> None:
        """Return if the transaction of `send_session_check` saw the schema as a new session would.

        Raises:
            ForeignSession: it did not, or that cannot be known.
        """
        if check is None:
            return
        _, _, search_path, role = await check.fetchone() or (None,) * 4
        # Options come from the address, the environment or a service file. A pooler may drop them.
        options = any(each.keyword == b"options" and each.val for each in self.pgconn.info)
        if options or (search_path, role) != self._new_session:
            log.warning("storage failed", reason=SchemaNotReady.reason, text=_CHANGED_SESSION)
            raise ForeignSession

    async def require_transactions(self) -> None:
        """Return if a transaction may take more than one round trip, as a write does.

        Raises:
            SchemaNotReady: a pooler in statement mode is in between. It closes this connection.
            psycopg.Error: the statements failed.
        """
        if self.direct:
            return
        try:
            await self.execute(BEGIN)
            await self.execute(COMMIT)
        except psycopg.errors.ProtocolViolation as error:
            if _STATEMENT_MODE not in str(error):
                raise  # PgBouncer gives this code to each of its errors, an outage included
            log.warning("storage failed", reason=SchemaNotReady.reason, text=_NO_TRANSACTIONS)
            raise SchemaNotReady from error

    def storable(self, text: str) -> str:
        """Return the text with a question mark for each character that the encoding of the database does not have."""
        encoding = self.info.encoding
        return text if encoding in UNIVERSAL_ENCODINGS else text.encode(encoding, "replace").decode(encoding)

    def sever(self) -> None:
        """Shut the socket down, so that a task that waits for the server stops waiting at once.

        This does not cancel the query: cancelling asks the server, which may be the one that hangs. It needs no new file
        descriptor, because there may be none left. Call it on the thread of the event loop only.
        """
        if self.closed:
            return
        borrowed = socket.socket(fileno=self.pgconn.socket)
        try:
            borrowed.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the peer was faster
        finally:
            borrowed.detach()  # libpq closes the descriptor


def _require_writable(*, read_only: bool) -> None:
    if read_only:
        raise psycopg.OperationalError(READ_ONLY)
