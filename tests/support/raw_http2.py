"""A client of HTTP/2 made by hand, for requests that no library would send."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
EMPTY: Final = b"\0\0\0\0\0"
"""An empty gRPC message."""
CANCEL: Final = struct.pack(">I", 8)
"""The error of a call that was taken back."""
NO_WINDOW: Final = struct.pack(">HI", 4, 0)
"""The settings of a client that takes no body on any stream."""

Header = tuple[str, bytes | str]


def message(payload: bytes) -> bytes:
    """A gRPC message as it stands in a DATA frame."""
    return struct.pack(">BI", 0, len(payload)) + payload


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _literal(text: bytes | str) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    assert len(raw) < 127, "HPACK would need a second byte for the length"
    return bytes((len(raw),)) + raw


class Connection:
    """A connection after its preface; whatever arrives is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: bytes) -> None:
        self._reader, self._writer = reader, writer
        self._next = -1
        self.frames: list[tuple[int, int, bytes]] = []
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, settings))

    def open(self, path: bytes | str, headers: Iterable[Header] = (), *, end: bool = False) -> int:
        """Sends the headers of a call; answers its number."""
        self._next += 2
        fields: list[Header] = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
        fields += [("content-type", "application/grpc"), ("te", "trailers"), *headers]
        block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in fields)
        self._writer.write(_frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), self._next, block))
        return self._next

    def send(self, stream: int, payload: bytes) -> None:
        """Sends the body of a call, and its end."""
        self._writer.write(_frame(DATA, END_STREAM, stream, payload))

    def reset(self, stream: int) -> None:
        """Takes a call back."""
        self._writer.write(_frame(RST_STREAM, 0, stream, CANCEL))

    async def drain(self) -> None:
        """Waits until the server has taken most of what was sent.

        Raises:
            ConnectionError: the server hung up.
        """
        await self._writer.drain()

    async def frame(self) -> tuple[int, int, bytes]:
        """The next frame: its kind, its stream and what it holds.

        Raises:
            EOFError: the server hung up.
        """
        head = await self._reader.readexactly(9)
        payload = await self._reader.readexactly(int.from_bytes(head[:3]))
        if head[3] == SETTINGS and not head[4] & ACK:
            self._writer.write(_frame(SETTINGS, ACK, 0))
        if head[3] == PING and not head[4] & ACK:
            self._writer.write(_frame(PING, ACK, 0, payload))
        self.frames.append((head[3], int.from_bytes(head[5:9]), payload))
        return self.frames[-1]

    async def listen(self, seconds: float) -> bytes:
        """All that arrives within this time, or until the server hangs up, in one piece."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self.frame()
        except (TimeoutError, EOFError, ConnectionError):
            return b"".join(payload for _, _, payload in self.frames)


@asynccontextmanager
async def connected(target: str, settings: bytes = b"") -> AsyncIterator[Connection]:
    """A connection to `host:port`, opened with these HTTP/2 settings."""
    host, _, port = target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer, settings)
    finally:
        writer.close()
