"""The relay before the conformance server: passes bytes both ways, and a reset is one, not an orderly end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from billing_grpc.conformance.connections import Connections


class Echo(asyncio.Protocol):
    """A connection of the server behind: sends back what it gets."""

    def __init__(self, behind: "list[asyncio.Transport]") -> None:
        self._behind = behind

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._behind.append(transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


Relay = tuple[list[asyncio.Transport], Connections, int]


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    """The connections of the server behind, the relay, and its port."""
    behind: list[asyncio.Transport] = []
    server = await asyncio.get_running_loop().create_server(lambda: Echo(behind), "127.0.0.1", 0)
    connections = Connections(server.sockets[0].getsockname()[1])
    front = await asyncio.start_server(connections.accept, "127.0.0.1", 0)
    yield behind, connections, front.sockets[0].getsockname()[1]
    for each in (front, server):
        each.close()
    await connections.end()
    for transport in behind:
        transport.abort()
    await asyncio.sleep(0)


async def call(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A caller's connection that has carried something, and so exists on both sides."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"1")
    assert await reader.readexactly(1) == b"1"
    return reader, writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_bytes_pass_both_ways(relay: Relay) -> None:
    sent = bytes(range(256)) * 4096
    reader, writer = await call(relay[2])
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent
    await hang_up(writer)


async def test_a_reset_of_a_caller_that_has_gone_is_no_error(relay: Relay) -> None:
    _, connections, _ = relay
    connections.reset("ipv4:127.0.0.1:1")
    connections.reset("")


async def test_a_reset_meets_one_caller_alone(relay: Relay) -> None:
    behind, connections, port = relay
    first_reader, first = await call(port)
    second_reader, second = await call(port)
    connections.reset(f"ipv4:127.0.0.1:{behind[0].get_extra_info('peername')[1]}")
    with pytest.raises(ConnectionResetError):
        await first_reader.read()
    second.write(b"2")
    assert await second_reader.readexactly(1) == b"2"
    await hang_up(first)
    await hang_up(second)


async def test_the_end_of_all_ends_every_caller(relay: Relay) -> None:
    reader, writer = await call(relay[2])
    await relay[1].end()
    assert await reader.read() == b""
    await hang_up(writer)
