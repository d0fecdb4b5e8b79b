"""Connect to the first host that accepts writes, in bounded time, for as long as a connection is wanted."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, Self

import psycopg
import structlog
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from billing_grpc.storage.postgres.connection import Connection

log = structlog.stdlib.get_logger(__name__)

CONNECT_TIMEOUT: Final = 2
"""Seconds; the least that libpq accepts."""

CONNECT_ERRORS: Final = (psycopg.Error, OSError, UnicodeError)
"""What a failed connect raises. A host's name that cannot be encoded for name services is a UnicodeError."""

# The errors of `Connection.prepare`, and of libpq for a server that `target_session_attrs` does not accept.
_READ_ONLY_HINTS: Final = ("session is read-only", "server is in hot standby mode")

_FIRST_TIME_LIMIT: Final = 0.5
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.4


def says_read_only(failure: str) -> bool:
    """Return whether the text of a failed connect says that the server does not accept writes."""
    return any(hint in failure for hint in _READ_ONLY_HINTS)


def each_host(conninfo: str) -> list[str]:
    """Return one address for each host of an address, in their order."""
    parts: dict[str, Any] = conninfo_to_dict(conninfo)
    lists = {name: str(parts[name]).split(",") for name in ("host", "hostaddr", "port") if parts.get(name)}
    count = max((len(values) for name, values in lists.items() if name != "port"), default=1)
    return [
        make_conninfo(**{**parts, **{name: values[min(at, len(values) - 1)] for name, values in lists.items()}})
        for at in range(count)
    ]


async def _always() -> bool:
    return True


class PersistentConnection(Connection):
    """A connection that keeps trying to connect. Each pool has a subclass, so that each remembers its own failures.

    Attributes:
        last_failure: the text of the last failed connect; None after a successful one.
        wait_until_wanted: returns True once it makes sense to connect; False if no connection is wanted any more.
    """

    last_failure: ClassVar[str | None] = None
    wait_until_wanted: ClassVar[Callable[[], Awaitable[bool]]] = staticmethod(_always)

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """Return a ready connection; try until there is one, except while the database is known to be down.

        The pool's own retries pause for a second, and would leave a database that has come back unused meanwhile.

        Raises:
            psycopg.OperationalError: the pool closes.
        """
        time_limit, pause = _FIRST_TIME_LIMIT, _FIRST_PAUSE
        while await cls.wait_until_wanted():
            try:
                return await cls.connect_once(time_limit, *args, **kwargs)
            except TimeoutError:
                # Without a pause, because lost packets stay lost. With more time, because the server may be slow.
                time_limit *= 2
            except CONNECT_ERRORS:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        raise psycopg.OperationalError("the pool closes")

    @classmethod
    async def connect_once(cls, time_limit: float | None, conninfo: str, **kwargs: Any) -> Self:
        """Return a ready connection to the first host that accepts writes; try each host once.

        Args:
            time_limit: seconds for all hosts together. Each host gets an equal share to connect, and the same again to
                prepare the session, so that a host that hangs does not hide the others. None gives each host
                `CONNECT_TIMEOUT`.
            conninfo: the address.
            kwargs: psycopg's connection arguments.

        Raises:
            TimeoutError: a host did not connect within its share, and no other host could be used.
            psycopg.Error: the server refused, or does not accept writes.
            OSError: no file descriptor is left for the socket.
            UnicodeError: the name of the host cannot be encoded for name services.
        """
        hosts = each_host(conninfo)
        share = None if time_limit is None else time_limit / len(hosts)
        failures: list[Exception] = []
        for host in hosts:
            try:
                async with asyncio.timeout(share):  # safe to cancel: no query is running yet
                    connection = await cls._connect_to(host, **kwargs)
                await connection.prepare(CONNECT_TIMEOUT if share is None else share)
            except TimeoutError as error:
                _clear_frames(error.__context__)  # Python 3.11.2 sets no cause
                failures.append(error)
            except CONNECT_ERRORS as error:
                _clear_frames(error)
                failures.append(error)
            else:
                cls.last_failure = None
                return connection
        raise cls._summary(failures)

    @classmethod
    async def _connect_to(cls, host: str, **kwargs: Any) -> Self:
        """Return a connection to the first IP address of this host that says it accepts writes.

        If every address says that it does not, return a connection to the first that answers: a pooler may repeat what an
        old server said.
        """
        try:
            return await super().connect(host, **kwargs)
        except psycopg.OperationalError as error:
            if not says_read_only(str(error)):
                raise
            _clear_frames(error)
        return await super().connect(make_conninfo(host, target_session_attrs="any"), **kwargs)

    @classmethod
    def _summary(cls, failures: list[Exception]) -> Exception:
        """Record the refusals and return the error to raise: a timeout if there was one."""
        refusals = [error for error in failures if not isinstance(error, TimeoutError)]
        if refusals:
            failure = "; ".join(str(error).strip() for error in refusals)
            if failure != cls.last_failure:
                log.warning("cannot connect to the database", text=failure)
            cls.last_failure = failure
        timeouts = [error for error in failures if isinstance(error, TimeoutError)]
        if timeouts or len(refusals) == 1:
            return (timeouts or refusals)[0]
        summary = psycopg.OperationalError(str(cls.last_failure))
        summary.__cause__ = refusals[-1]
        return summary


def _clear_frames(error: BaseException | None) -> None:
    """Break the reference cycle between an error and its frames, which would keep the socket of a failed connect open."""
    if error is not None:
        traceback.clear_frames(error.__traceback__)
