"""Run the server that plays the conformance vectors, on loopback or a Unix socket only."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import grpc

from billing_grpc.addresses import Address, UnixAddress, parse
from billing_grpc.conformance import cases
from billing_grpc.conformance.answers import methods
from billing_grpc.conformance.connections import Connections
from billing_grpc.errors import ListenError, SettingsError
from billing_grpc.server.auth.principals import Principals
from billing_grpc.server.auth.principals_file import FixedPrincipals
from billing_grpc.server.calls.chain import Chain
from billing_grpc.server.net.ports import require_free
from billing_grpc.server.settings.limits import Limits
from billing_grpc.server.telemetry import logs
from billing_grpc.server.telemetry.metrics import Metrics

_BEHIND: Final = "127.0.0.1:0"


def run(listen: str, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        listen: the address to listen on.
        announce: gets the line with the address, once the server answers.

    Raises:
        SettingsError: the address is malformed, or other machines could reach it.
        ListenError: the address is taken or cannot be used.
    """
    address = _local_address(listen)
    # Many cases are degraded decisions, so their warnings are noise.
    logs.configure("auto", "ERROR")
    asyncio.run(_until_stopped(address, announce))


@asynccontextmanager
async def serving(address: Address) -> AsyncIterator[str]:
    """Run a conformance server, and yield the `host:port` or `unix:/path` to dial.

    Raises:
        ListenError: the address is taken or cannot be used.
    """
    behind = grpc.aio.server()
    connections = Connections(behind.add_insecure_port(_BEHIND))
    # Production's behaviours: a client also meets their errors, request ids and limits.
    chain = Chain(
        methods({each.id: each for each in cases.load()}, connections.reset),
        FixedPrincipals(Principals({}, {}, {})),
        local_admin=True,
        limits=Limits(),
        metrics=Metrics(),
    )
    behind.add_generic_rpc_handlers((chain,))
    await behind.start()
    try:
        listener = await _listen(address, connections)
        bound = address
        if not isinstance(address, UnixAddress):
            bound = replace(address, port=listener.sockets[0].getsockname()[1])
        try:
            yield str(bound)
        finally:
            listener.close()
            # Since Python 3.12, `wait_closed` waits for the listener's connections.
            await connections.end()
            await listener.wait_closed()
    finally:
        await behind.stop(grace=0)


async def _until_stopped(address: Address, announce: Callable[[str], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with serving(address) as target:
        announce(f"listening on {target}")
        await stopped.wait()


def _local_address(listen: str) -> Address:
    try:
        address = parse(listen)
    except ValueError as error:
        raise SettingsError([f"--listen: {error}"]) from error
    if isinstance(address, UnixAddress) or (address.is_loopback and address.security == "plain"):
        return address
    raise SettingsError(
        [
            f"--listen: {address} is neither a plain-text loopback address nor a Unix socket: this server is for tests only"
        ]
    )


async def _listen(address: Address, connections: Connections) -> asyncio.Server:
    require_free(address)
    try:
        if isinstance(address, UnixAddress):
            return await asyncio.start_unix_server(connections.accept, address.path)
        return await asyncio.start_server(connections.accept, address.host, address.port)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
