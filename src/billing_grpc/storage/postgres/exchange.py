"""Run one statement on a connection through libpq, without a cursor of the driver.

A cursor handles every type, parameter style and format. For the two columns of a decision that takes 39 µs of CPU time
where 15 µs are needed (uvloop), for each of some thousand reads a second. A kept plan saves the server 0.1 ms a read.
"""

import asyncio
from collections.abc import Sequence

import psycopg
from psycopg import errors
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult


async def exchange(pgconn: PGconn, statement: bytes, parameters: Sequence[bytes], encoding: str) -> PGresult:
    """Send a statement and return its result, with values in binary format.

    Do not cancel this coroutine, nor the others of this module: the connection cannot be used after that.

    Args:
        pgconn: a connection that runs nothing else, and is in non-blocking mode as psycopg's are.
        statement: one statement, whose types follow from casts.
        parameters: the values of $1, $2 and so on, in text format.
        encoding: Python's name of the encoding of the server's messages.

    Raises:
        psycopg.Error: the statement failed, or the connection is lost.
    """
    pgconn.send_query_params(statement, parameters, result_format=Format.BINARY)
    return _last_with_status(await _results(pgconn), ExecStatus.TUPLES_OK, encoding)


async def prepare(pgconn: PGconn, name: bytes, statement: bytes, encoding: str) -> None:
    """Let the server keep a statement, and soon its plan, under a name; otherwise as `exchange`."""
    pgconn.send_prepare(name, statement)
    _last_with_status(await _results(pgconn), ExecStatus.COMMAND_OK, encoding)


async def exchange_prepared(pgconn: PGconn, name: bytes, parameters: Sequence[bytes], encoding: str) -> PGresult:
    """Run the statement that `prepare` has given this name; otherwise as `exchange`."""
    pgconn.send_query_prepared(name, parameters, result_format=Format.BINARY)
    return _last_with_status(await _results(pgconn), ExecStatus.TUPLES_OK, encoding)


async def _results(pgconn: PGconn) -> list[PGresult]:
    """Send what waits to be sent, and return the results when all have arrived."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[list[PGresult]] = loop.create_future()
    results: list[PGresult] = []
    descriptor = pgconn.socket

    def stop() -> None:
        loop.remove_reader(descriptor)
        loop.remove_writer(descriptor)

    def receive() -> None:
        try:
            if _all_taken(pgconn, results):
                stop()
                received.set_result(results)
            else:
                # uvloop stops watching a socket that is reset, also if it still holds data.
                loop.remove_reader(descriptor)
                loop.add_reader(descriptor, receive)
        except psycopg.Error as error:
            # Now, not when the task goes on: libpq has closed the socket, and another one may get its number until then.
            stop()
            received.set_exception(error)

    def send() -> None:
        try:
            if pgconn.flush() == 0:
                loop.remove_writer(descriptor)
        except psycopg.Error as error:
            stop()
            received.set_exception(error)

    unsent = pgconn.flush() != 0  # a long statement, and the socket is full
    loop.add_reader(descriptor, receive)
    if unsent:
        loop.add_writer(descriptor, send)
    try:
        await received
    except asyncio.CancelledError:
        stop()
        raise
    return results


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
