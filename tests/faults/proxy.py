"""A network that can lose connections: a process between TCP and a Postgres socket. SIGUSR1 loses, SIGUSR2 finds.

What is lost stays open and silent for good, like a connection whose entry some router has dropped; so does what connects
before the network is found again.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Network:
    """The state that the signals change."""

    target: str
    lost: bool = False
    running: set[asyncio.Task[None]] = field(default_factory=set)
    kept: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries bytes both ways until one side ends it, or the network loses it."""
        self.kept.append(writer)
        if self.lost:
            return
        try:
            there, back = await asyncio.open_unix_connection(self.target)
        except OSError:  # no server
            self.kept.remove(writer)
            writer.close()
            return
        ways = {asyncio.create_task(carry(reader, back)), asyncio.create_task(carry(there, writer))}
        self.running |= ways
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        self.running -= ways
        for way in ways:
            way.cancel()
        back.close()
        if not self.lost:
            self.kept.remove(writer)
            writer.close()

    def lose(self) -> None:
        self.lost = True
        for way in self.running:
            way.cancel()

    def find(self) -> None:
        self.lost = False


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()


async def main(target: str) -> None:
    network = Network(target)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, network.lose)
    loop.add_signal_handler(signal.SIGUSR2, network.find)
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    server = await asyncio.start_server(network.connect, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await stopping.wait()
    server.close()
    os._exit(0)  # at once, with everything that is lost


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
