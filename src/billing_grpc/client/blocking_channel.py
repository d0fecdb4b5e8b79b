"""Connect to a server without an event loop: one channel for all threads of a process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from billing_grpc.client import forked
from billing_grpc.client.bearer_token import TokenSource
from billing_grpc.client.endpoint import Endpoint, Options
from billing_grpc.client.tls import ClientTls
from billing_grpc.errors import ServerUnreachable


@dataclass(eq=False, slots=True)
class Line:
    """A channel in use.

    Attributes:
        channel: the channel.
        calls: how many calls run on it.
        retired: whether another channel has replaced it.
        unreachable: whether its last call found no server.
    """

    channel: grpc.Channel
    calls: int = 0
    retired: bool = False
    unreachable: bool = False


class BlockingDialer(Endpoint[Line]):
    """A channel to one server, for the threads of one process.

    Arguments and errors are those of `Endpoint`.
    """

    def __init__(self, target: str, *, token: TokenSource | None, tls: ClientTls | None) -> None:
        super().__init__(target, token=token, tls=tls)
        # A signal's handler may call or close the client while its own thread is in here.
        self._lock = threading.RLock()
        self._lines: set[Line] = set()
        self._closed = False

    @contextmanager
    def line(self) -> Iterator[Line]:
        """Hold the channel to call on: a new one if a TLS file has changed, or if the server could not be reached.

        If the files are missing, half written or half renewed, the channel in use stays, and a warning is logged.

        Raises:
            ServerUnreachable: this dialer was closed, or the TLS files were never usable.
        """
        with self._lock:
            line = self._current()
            line.calls += 1
        try:
            yield line
        finally:
            with self._lock:
                line.calls -= 1
                self._close_if_done(line)

    def close(self) -> None:
        """Close the channels and end their calls. A later call raises `ServerUnreachable`."""
        self._closed = True
        if forked.is_doubtful():
            # A call that hangs in gRPC may hold the lock.
            return
        with self._lock:
            self._close_lines()

    def _close_lines(self) -> None:
        while self._lines:
            self._lines.pop().channel.close()

    def _current(self) -> Line:
        if self._closed:
            raise ServerUnreachable("this client was closed")
        if self._reloaded is None:
            self._reloaded = self._reloaded_channel()
        line = self._reloaded.current()
        if line.unreachable and self._may_be_replaced():
            self._reloaded.reload()
            line = self._reloaded.current()
        if self._closed:
            self._close_lines()
            raise ServerUnreachable("this client was closed")
        return line

    def _open(self, options: Options, credentials: grpc.ChannelCredentials | None) -> Line:
        if credentials is None:
            line = Line(grpc.insecure_channel(self.target, options))
        else:
            line = Line(grpc.secure_channel(self.target, credentials, options))
        self._lines.add(line)
        return line

    def _retire(self, old: Line | None, new: Line) -> None:
        """Close a replaced channel when its last call has ended; the lock is held."""
        del new
        if old is not None:
            old.retired = True
            self._close_if_done(old)

    def _close_if_done(self, line: Line) -> None:
        if line.retired and not line.calls:
            line.channel.close()
            self._lines.discard(line)
