"""Run a gateway process: listen, serve until a signal says stop."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from billing_grpc.addresses import TcpAddress
from billing_grpc.errors import ListenError
from billing_grpc.gateway.app import application
from billing_grpc.gateway.local_admin import LocalAdmin
from billing_grpc.gateway.upstream import Upstream

_HEADER_SECONDS: Final = 5.0
"""Seconds in which the head of a request must arrive."""
_READ_SECONDS: Final = 10.0
"""Seconds in which a caller must read an answer that is ready."""
_MAX_HEADER_BYTES: Final = 16 << 10
_MAX_CONNECTIONS: Final = 1000
_GRACE_SECONDS: Final = 5
_LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")


def run(
    upstream: Upstream,
    listen: TcpAddress,
    say: Callable[[str], None],
    *,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
    local_admin: bool = False,
    until: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        upstream: the server behind the gateway.
        listen: where to listen; port 0 for a free one.
        say: called with the lines for standard output, once the gateway answers.
        hosts: the names by which callers reach the gateway, with or without a port; those of loopback are added.
        origins: the origins of other sites whose pages may call.
        local_admin: whether the page may act as the server's principal `local`, opened by an address that works once.
        until: waits in a thread of its own; when it returns, the gateway ends too.

    Raises:
        ListenError: the address is taken or cannot be used.
    """
    # A stranger's broken request is no event; what fails in the gateway is logged as an error, with its traceback.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    with bound(listen) as listener, asyncio.Runner() as runner:
        port = listener.getsockname()[1]
        address = TcpAddress(listen.host, port).target
        own = [address, *(f"{name}:{port}" for name in _LOOPBACK_NAMES)] if listen.is_loopback else []
        url = f"http://{address}"
        pages = LocalAdmin(lambda secret: say(f"page: {url}/#{secret}")) if local_admin else None
        app = application(upstream, pages, hosts=[*hosts, *own], origins=origins)

        def listening() -> None:
            say(f"listening on {url}")
            if pages is not None:
                pages.renew()

        server = _Server(app, listening)
        if until is not None:
            _ending_with(until, server)
        try:
            runner.run(server.serve(sockets=[listener]))
        finally:
            runner.run(upstream.close())


def _ending_with(until: Callable[[], None], server: uvicorn.Server) -> None:
    """End the server when `until` returns."""

    def wait() -> None:
        until()
        server.should_exit = True

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def bound(address: TcpAddress) -> Iterator[socket.socket]:
    """Yield a socket that is bound to an address, until the context ends.

    Raises:
        ListenError: the address is taken or cannot be used.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol: asyncio turns Nagle's algorithm off only for sockets that name it, and with it an answer takes
        # 40 ms longer, because head and body are written one after the other.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(target)
        except OSError as error:
            raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
        yield listener


class _Server(uvicorn.Server):
    """The library's server, which says when it answers and ends without an error at the first signal."""

    def __init__(self, app: Any, listening: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,  # the server writes the access line of a call
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_MAX_CONNECTIONS,
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


class _Protocol(H11Protocol):
    """The library's HTTP/1.1, with time limits for a request's head and for the reading of its answer.

    Without them, connections that send nothing, or read nothing, use up all.
    """

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # the library narrows asyncio's type too
        super().connection_made(transport)
        # Writing pauses as soon as anything waits for the caller, and goes on when nothing does.
        transport.set_write_buffer_limits(high=0)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = asyncio.get_running_loop().call_later(_READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._has_read()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._has_read()
        super().connection_lost(exc)

    def _watch(self) -> None:
        # There is no cycle before the first request, against the library's annotation.
        if not getattr(self.cycle, "response_complete", True):
            self._unwatch()
        elif self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(_HEADER_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _has_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
