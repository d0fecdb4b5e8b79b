"""The HTTP port of the metrics; no slow connection can block it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from billing_grpc.addresses import TcpAddress

MAX_CONNECTIONS: Final = 32
"""Open at once; the oldest gives way to the next, because a scrape takes milliseconds, each on its own connection."""
IDLE_SECONDS: Final = 5.0
"""Seconds that a client may neither send nor read."""


@contextmanager
def exposed(address: TcpAddress, registry: CollectorRegistry) -> Iterator[int]:
    """Expose a registry on an address; yield the real port.

    Raises:
        OSError: the address is taken or cannot be used.
    """
    with _Server(address, registry) as server:
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class _Handler(WSGIRequestHandler):
    timeout = IDLE_SECONDS

    def log_message(self, *_: Any) -> None:
        """Say nothing: a scrape every few seconds is no event."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 4 * MAX_CONNECTIONS

    def __init__(self, address: TcpAddress, registry: CollectorRegistry) -> None:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, where = found[0]
        self._lock = threading.Lock()
        self._open: dict[Any, None] = {}
        super().__init__((str(where[0]), address.port), _Handler)
        self.set_app(make_wsgi_app(registry))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own; the oldest goes if there are too many."""
        with self._lock:
            self._open[request] = None
            if len(self._open) > MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that was answered or given up."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that is silent, hangs up or is cut off; the default prints a traceback."""
