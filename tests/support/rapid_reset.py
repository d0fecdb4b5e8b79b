"""Opens calls and takes them back as fast as one connection takes it, until it is killed: rapid_reset.py HOST:PORT PATH."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.raw_http2 import connected

_AT_ONCE = 200


async def main(target: str, path: str) -> None:
    async with connected(target) as connection:
        await connection.listen(0.3)
        heard = asyncio.create_task(connection.listen(3600))
        for wave in range(sys.maxsize):
            for _ in range(_AT_ONCE):
                connection.reset(connection.open(path))
            await connection.drain()
            connection.frames.clear()
            await asyncio.sleep(0)
            if not wave:
                sys.stdout.write("begun\n")
                sys.stdout.flush()
        await heard


asyncio.run(main(*sys.argv[1:]))
