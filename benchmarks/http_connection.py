"""An HTTP/1.1 connection, with one call at a time."""

from benchmarks.connections import Answer, Check, Request, connected, received


class HttpConnection:
    """An HTTP/1.1 connection that is kept alive; a second request waits for the first one's answer."""

    def __init__(self, address: tuple[str, int], check: Check) -> None:
        """Connect."""
        self.socket = connected(address)
        self.free = 1
        self._check = check
        self._call: tuple[Request, float] | None = None
        self._out = self._buffer = b""

    def start(self, request: Request, due: float) -> None:
        """Queue a request."""
        self.free = 0
        self._call = request, due
        self._out = request.payload

    def flush(self) -> None:
        """Send what is queued."""
        if self._out:
            self.socket.sendall(self._out)
            self._out = b""

    def receive(self) -> list[Answer]:
        """Return the answer once all of it has come."""
        self._buffer += received(self.socket)
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if not separator or len(body) < int(length) or self._call is None:
            return []
        request, due = self._call
        self.free, self._call, self._buffer = 1, None, b""
        problem = None
        if head[9:12] != b"200":
            problem = head[:40].decode(errors="replace")
        elif not self._check(body, request.expected):
            problem = f"a wrong answer: {body[:400]!r}"
        return [Answer(due, problem)]

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
