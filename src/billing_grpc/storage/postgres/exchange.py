"""Run one statement on a connection through libpq, without a cursor of the driver.

A cursor handles every type, parameter style and format. For the two columns of a decision that takes 39 µs of CPU time
where 15 µs are needed (uvloop), for each of some thousand reads a second. A kept plan saves the server 0.1 ms a read.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Final

import psycopg
from psycopg import errors
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult

KEPT_SECONDS: Final = 60.0
"""How long a connection keeps a statement before it prepares it anew."""


async def exchange(pgconn: PGconn, statement: bytes, parameters: Sequence[bytes], encoding: str) -> PGresult:
    """Send a statement and return its result, with values in binary format.

    Do not cancel this coroutine: the connection cannot be used after that.

    Args:
        pgconn: a connection that runs nothing else, and is in non-blocking mode as psycopg's are.
        statement: one statement, whose types follow from casts.
        parameters: the values of $1, $2 and so on, in text format.
        encoding: Python's name of the encoding of the server's messages.

    Raises:
        psycopg.Error: the statement failed, or the connection is lost.
    """
    pgconn.send_query_params(statement, parameters, result_format=Format.BINARY)
    return _last_with_status(await _Receiver(pgconn).results(), ExecStatus.TUPLES_OK, encoding)


class KeptStatements:
    """Runs the statements of one connection, and lets its server keep each under a name, and soon its plan.

    Postgres does not look at a kept statement again after every change that gives it another meaning. So a kept statement
    must return no row after such a change. From then on, as after a denial, the connection runs it without keeping it. It is
    prepared anew once a minute: a plan that was made for a small table is slow after a bulk load, until the next ANALYZE.

    Args:
        pgconn: the connection, as `exchange` takes it.
        encoding: as `exchange` takes it.
    """

    def __init__(self, pgconn: PGconn, encoding: str) -> None:
        self._pgconn = pgconn
        self._encoding = encoding
        self._prepared_at: dict[bytes, float] = {}
        self._given_up: set[str] = set()

    async def run(self, statement: str, kept: str, parameters: Sequence[bytes]) -> PGresult:
        """Return the result of a statement; errors are those of `exchange`.

        Args:
            statement: as `exchange` takes it, but as text.
            kept: the same statement, but it returns no row if it may mean something else than when it was prepared.
            parameters: as `exchange` takes them.

        Raises:
            psycopg.errors.InvalidSqlStatementName: the connection leads to another session than before.
            psycopg.errors.DuplicatePreparedStatement: the same.
        """
        if kept not in self._given_up:
            with suppress(errors.InsufficientPrivilege):  # on a table, perhaps, that another one hides by now
                result = await self._run_kept(kept, parameters)
                if result.ntuples:
                    return result
            self._given_up.add(kept)
        return await exchange(self._pgconn, statement.encode(), parameters, self._encoding)

    async def _run_kept(self, kept: str, parameters: Sequence[bytes]) -> PGresult:
        name, now = _name(kept), asyncio.get_running_loop().time()
        prepared_at = self._prepared_at.get(name)
        if prepared_at is None or now - prepared_at >= KEPT_SECONDS:
            if self._prepared_at.pop(name, None) is not None:
                self._pgconn.send_query_params(b"DEALLOCATE " + name, None)
                await self._last(ExecStatus.COMMAND_OK)
            self._pgconn.send_prepare(name, kept.encode())
            await self._last(ExecStatus.COMMAND_OK)
            self._prepared_at[name] = now
        self._pgconn.send_query_prepared(name, parameters, result_format=Format.BINARY)
        return await self._last(ExecStatus.TUPLES_OK)

    async def _last(self, status: ExecStatus) -> PGresult:
        return _last_with_status(await _Receiver(self._pgconn).results(), status, self._encoding)


@cache
def _name(statement: str) -> bytes:
    """Return the name of a kept statement. No other statement has it, should a pooler share its sessions unnoticed."""
    return b"billing_grpc_" + hashlib.sha256(statement.encode()).hexdigest()[:32].encode()


class _Receiver:
    """Receives the results of what was sent on a connection.

    It is a class because nested functions would refer to each other. Only the garbage collector could then free what they
    hold.
    """

    __slots__ = ("_descriptor", "_loop", "_pgconn", "_received", "_results")

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._descriptor = pgconn.socket
        self._loop = asyncio.get_running_loop()
        self._received: asyncio.Future[None] = self._loop.create_future()
        self._results: list[PGresult] = []

    async def results(self) -> list[PGresult]:
        """Send what waits to be sent, and return the results when all have arrived."""
        unsent = self._pgconn.flush() != 0  # a long statement, and the socket is full
        self._loop.add_reader(self._descriptor, self._receive)
        if unsent:
            self._loop.add_writer(self._descriptor, self._send)
        try:
            await self._received
        except asyncio.CancelledError:
            self._stop()
            raise
        return self._results

    def _receive(self) -> None:
        try:
            if _all_taken(self._pgconn, self._results):
                self._stop()
                if not self._received.done():  # cancelled in this turn of the loop
                    self._received.set_result(None)
            else:
                # uvloop stops watching a socket that is reset, also if it still holds data.
                self._loop.remove_reader(self._descriptor)
                self._loop.add_reader(self._descriptor, self._receive)
        except psycopg.Error as error:
            self._fail(error)

    def _send(self) -> None:
        try:
            if self._pgconn.flush() == 0:
                self._loop.remove_writer(self._descriptor)
        except psycopg.Error as error:
            self._fail(error)

    def _fail(self, error: psycopg.Error) -> None:
        # Now, not when the task goes on: libpq has closed the socket, and another one may get its number until then. If the
        # socket was also watched for room to send, asyncio's loop complains that it is closed, and forgets it.
        with suppress(OSError):
            self._stop()
        if not self._received.done():
            self._received.set_exception(error)

    def _stop(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)


def _all_taken(pgconn: PGconn, results: list[PGresult]) -> bool:
    """Take the results that have arrived, and return whether there are no more to come."""
    pgconn.consume_input()
    while not pgconn.is_busy():
        if (result := pgconn.get_result()) is None:
            return True
        results.append(result)
    return False


def _last_with_status(results: list[PGresult], status: ExecStatus, encoding: str) -> PGresult:
    if not results or results[-1].status != status:
        raise errors.error_from_result(results[-1], encoding) if results else psycopg.OperationalError("no result")
    return results[-1]
