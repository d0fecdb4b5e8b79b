"""Client connections of the load generator: gRPC over HTTP/2 with many calls at once, and HTTP/1.1 with one.

A client library would cost as much as the server that is measured, and would be measured with it. So requests are bytes
that were made before, and only the answers are read: each status and each body.
"""

import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from hpack import Decoder, Encoder

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD: Final = struct.Struct(">BHBBI")
"""The head of a frame: its length (one byte and two), kind, flags and stream."""
_LARGEST_WINDOW: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65_535
_INITIAL_WINDOW_SIZE: Final = 0x4
_LARGEST_FRAME: Final = 16_384
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


def _connected(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _received(connection: socket.socket) -> bytes:
    received = connection.recv(_RECEIVED_AT_ONCE)
    if not received:
        raise ConnectionError("the server ended the connection")
    return received


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame of HTTP/2."""
    return _HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def grpc_message(payload: bytes) -> bytes:
    """Return a message of gRPC as it stands in DATA frames."""
    return struct.pack(">BI", 0, len(payload)) + payload


@dataclass(slots=True)
class _Call:
    request: Request
    due: float
    status: str = "no status"
    body: bytes = b""


class GrpcConnection:
    """An HTTP/2 connection for calls of one method, with the same metadata each."""

    def __init__(
        self, address: tuple[str, int], path: str, metadata: dict[str, str], check: Check, at_once: int
    ) -> None:
        """Connect, and send the preface with windows so large that no answer waits for them."""
        self.socket = _connected(address)
        self.free = at_once
        self._check = check
        self._headers = [
            *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", f"{address[0]}:{address[1]}")),
            *(("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "5S"), *metadata.items()),
        ]
        self._encoder, self._decoder = Encoder(), Decoder()
        self._indexed: bytes | None = None
        self._next = 1
        self._calls: dict[int, _Call] = {}
        self._window = _FIRST_WINDOW
        self._waiting: list[tuple[int, bytes]] = []
        self._buffer = b""
        self._out = [
            _PREFACE,
            frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)),
            frame(WINDOW_UPDATE, 0, 0, (_LARGEST_WINDOW - _FIRST_WINDOW).to_bytes(4)),
        ]

    def start(self, request: Request, due: float) -> None:
        """Queue a call."""
        stream, self._next = self._next, self._next + 2
        self._calls[stream] = _Call(request, due)
        self.free -= 1
        self._out.append(frame(HEADERS, END_HEADERS, stream, self._header_block()))
        self._waiting.append((stream, request.payload))

    def flush(self) -> None:
        """Send what is queued, as far as the server's window allows."""
        while self._waiting and len(self._waiting[0][1]) <= self._window:
            stream, payload = self._waiting.pop(0)
            self._window -= len(payload)
            for start in range(0, len(payload), _LARGEST_FRAME):
                part = payload[start : start + _LARGEST_FRAME]
                last = start + _LARGEST_FRAME >= len(payload)
                self._out.append(frame(DATA, END_STREAM if last else 0, stream, part))
        if self._out:
            self.socket.sendall(b"".join(self._out))
            self._out.clear()

    def receive(self) -> list[Answer]:
        """Return the answers that have come."""
        self._buffer += _received(self.socket)
        return [answer for each in self._frames() if (answer := self._take(*each)) is not None]

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _header_block(self) -> bytes:
        """Return the same headers each time; from the second call on the server knows them by their index."""
        if self._indexed is not None:
            return self._indexed
        first: bytes = self._encoder.encode(self._headers, huffman=False)
        self._indexed = self._encoder.encode(self._headers, huffman=False)
        return first

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        at, buffer = 0, self._buffer
        while len(buffer) - at >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(buffer, at)
            end = at + _HEAD.size + (high << 16 | low)
            if end > len(buffer):
                break
            yield kind, flags, stream, buffer[at + _HEAD.size : end]
            at = end
        self._buffer = buffer[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> Answer | None:
        if kind == DATA:
            self._calls[stream].body += payload
        elif kind == HEADERS:
            # No server of this benchmark pads its headers or continues them in a second frame.
            fields = dict(self._decoder.decode(payload))
            self._calls[stream].status = fields.get("grpc-status", "no status")
            if flags & END_STREAM:
                return self._finish(stream)
        elif kind == RST_STREAM and stream in self._calls:
            self._calls[stream].status = f"reset {int.from_bytes(payload)}"
            return self._finish(stream)
        elif kind == GOAWAY:
            raise ConnectionError(f"the server sent GOAWAY: {payload[8:]!r}")
        else:
            self._keep_up(kind, flags, stream, payload)
        return None

    def _keep_up(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in {SETTINGS, PING} and not flags & ACK:
            self._out.append(frame(kind, ACK, 0, payload if kind == PING else b""))
            self.flush()
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload)
            self.flush()

    def _finish(self, stream: int) -> Answer:
        call = self._calls.pop(stream)
        self.free += 1
        problem = None
        if call.status != "0":
            problem = f"grpc-status {call.status}"
        elif call.body[:1] != b"\0" or not self._check(call.body[5:], call.request.expected):
            problem = f"a wrong answer: {call.body[:400]!r} for {call.request.payload[:80]!r}"
        return Answer(call.due, problem)


class HttpConnection:
    """An HTTP/1.1 connection that is kept alive; a second request waits for the first one's answer."""

    def __init__(self, address: tuple[str, int], check: Check) -> None:
        """Connect."""
        self.socket = _connected(address)
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
        self._buffer += _received(self.socket)
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
