"""The relay before the conformance server: passes bytes both ways, and a reset is one, not an orderly end."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from billing_grpc.conformance.connections import Connections


class Behind:
    """A server that sends back what it gets, and remembers who it was connected to."""

    def __init__(self) -> None:
        self.peers: list[str] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(f"ipv4:127.0.0.1:{writer.get_extra_info('peername')[1]}")
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
        writer.close()


@pytest.fixture
async def relay() -> AsyncIterator[tuple[Behind, Connections, int]]:
    behind = Behind()
    async with await asyncio.start_server(behind.accept, "127.0.0.1", 0) as server:
        connections = Connections(server.sockets[0].getsockname()[1])
        async with await asyncio.start_server(connections.accept, "127.0.0.1", 0) as front:
            yield behind, connections, front.sockets[0].getsockname()[1]
            connections.end()


async def test_bytes_pass_both_ways(relay: tuple[Behind, Connections, int]) -> None:
    sent = bytes(range(256)) * 4096
    reader, writer = await asyncio.open_connection("127.0.0.1", relay[2])
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent
    writer.close()


async def test_a_reset_meets_one_caller_alone(relay: tuple[Behind, Connections, int]) -> None:
    behind, connections, port = relay
    (first_reader, first), (second_reader, second) = [
        await asyncio.open_connection("127.0.0.1", port) for _ in range(2)
    ]
    for reader, writer in ((first_reader, first), (second_reader, second)):
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
    connections.reset(behind.peers[0])
    with pytest.raises(ConnectionResetError):
        await first_reader.read()
    second.write(b"2")
    assert await second_reader.readexactly(1) == b"2"
    for writer in (first, second):
        writer.close()


async def test_the_end_of_all_ends_every_caller(relay: tuple[Behind, Connections, int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay[2])
    writer.write(b"1")
    assert await reader.readexactly(1) == b"1"
    relay[1].end()
    assert await reader.read() == b""
    writer.close()
