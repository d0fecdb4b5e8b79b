"""An HTTP/2 connection with many calls of one gRPC method at once."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hpack import Decoder, Encoder

from benchmarks.connections import Answer, Check, Request, connected, received

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD: Final = struct.Struct(">BHBBI")
"""The head of a frame: its length (one byte and two), kind, flags and stream."""
_LARGEST_WINDOW: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65_535
_INITIAL_WINDOW_SIZE: Final = 0x4
_LARGEST_FRAME: Final = 16_384


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
        self.socket = connected(address)
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
        self._buffer += received(self.socket)
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
