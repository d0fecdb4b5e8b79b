"""What the load generator needs of a connection: requests as bytes, answers with what was wrong with them.

A client library would cost as much as the server that is measured, and would be measured with it. So requests are bytes
that were made before, and only the answers are read: each status and each body.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

_RECEIVED_AT_ONCE: Final = 1 << 18

Check = Callable[[bytes, Any], bool]
"""Whether an answer's body is the expected one."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it goes over the wire, and what its answer has to say."""

    payload: bytes
    expected: Any


@dataclass(slots=True)
class Answer:
    """An answer that has come: when its call was due, and what was wrong with it, if anything."""

    due: float
    problem: str | None


class Connection(Protocol):
    """One connection to a server."""

    socket: socket.socket
    free: int
    """How many more calls it takes now."""

    def start(self, request: Request, due: float) -> None:
        """Queue a request whose latency counts from `due`."""

    def flush(self) -> None:
        """Send what is queued."""

    def receive(self) -> list[Answer]:
        """Return the answers that have come; waits for the first bytes.

        Raises:
            ConnectionError: the server ended the connection.
        """

    def close(self) -> None:
        """Close the socket."""


def connected(address: tuple[str, int]) -> socket.socket:
    """Return a socket that sends small writes at once."""
    connection = socket.create_connection(address, timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def received(connection: socket.socket) -> bytes:
    """Return what has come; waits for the first bytes.

    Raises:
        ConnectionError: the server ended the connection.
    """
    data = connection.recv(_RECEIVED_AT_ONCE)
    if not data:
        raise ConnectionError("the server ended the connection")
    return data
