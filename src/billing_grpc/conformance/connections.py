"""Relay bytes between callers and a gRPC server, which cannot reset a caller's connection itself."""

import asyncio
import contextlib
import socket
import struct
from typing import Final

_CHUNK: Final = 1 << 16
_DROP_WHAT_IS_UNSENT: Final = struct.pack("ii", 1, 0)
"""A linger time of zero: closing then sends a reset instead of an orderly end."""


class Connections:
    """The callers' connections, each relayed over its own connection to the server.

    Args:
        port: the server's port on loopback.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._callers: dict[str, asyncio.StreamWriter] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one caller's bytes in both directions until either side ends."""
        running = asyncio.create_task(self._relay(reader, writer))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        await running

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._port)
        name = str(behind_writer.get_extra_info("sockname")[1])
        self._callers[name] = writer
        there = asyncio.create_task(_carry(reader, behind_writer))
        back = asyncio.create_task(_carry(behind_reader, writer))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._callers[name]
            for task in (there, back):
                task.cancel()
            for each in (writer, behind_writer):
                each.transport.abort()

    def reset(self, peer: str) -> None:
        """Reset the caller that the server sees as `peer`, for example `ipv4:127.0.0.1:50000`, unless it has gone."""
        writer = self._callers.get(peer.rpartition(":")[2])
        if writer is None:
            return
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP_WHAT_IS_UNSENT)
        writer.transport.abort()

    async def end(self) -> None:
        """End every connection, and return when all are closed."""
        for writer in list(self._callers.values()):
            writer.transport.abort()
        if self._running:
            await asyncio.wait(self._running)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
