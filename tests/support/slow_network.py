"""A network between a client and a Postgres on a Unix socket that delivers the server's answers late."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_PIECE: Final = 65536


@asynccontextmanager
async def slow_answers(url: str, hold: Callable[[], Awaitable[object]]) -> AsyncIterator[str]:
    """Yield the address of the same database over this network.

    Args:
        url: the address, which names the directory of a Unix socket.
        hold: is awaited for each piece of an answer, which is delivered then.
    """
    parts = conninfo_to_dict(url)
    path = f"{parts['host']}/.s.PGSQL.{parts['port']}"
    ways: set[asyncio.Task[None]] = set()

    async def carry(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hold: Callable[[], Awaitable[object]] | None
    ) -> None:
        try:
            while piece := await reader.read(_PIECE):
                if hold is not None:
                    await hold()
                writer.write(piece)
                await writer.drain()
        except OSError:
            return
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_unix_connection(path)
        for way in (carry(reader, questions, None), carry(answers, writer, hold)):
            ways.add(asyncio.create_task(way))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield make_conninfo(url, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        server.close()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
