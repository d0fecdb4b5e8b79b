"""Limit how much work uses the connections of a pool at the same time."""

import asyncio

from billing_grpc.errors import DatabaseTimeout


class Slots:
    """As many slots as there are connections, of which writes get half at most.

    Work that holds a slot waits only for a connection to be made. It never waits in the queue of psycopg's pool, where the
    entries of dead waiters stay. Writes may all wait for one row's lock, so some slots are for reads alone.
    """

    def __init__(self, size: int) -> None:
        self._all = asyncio.Semaphore(size)
        self._writes = asyncio.Semaphore(max(1, size // 2))

    async def acquire(self, deadline: float, *, writes: bool) -> None:
        """Wait for a slot until the deadline, which is in the clock of the event loop.

        Raises:
            DatabaseTimeout: no slot became free in time.
        """
        if writes:
            await _acquire(self._writes, deadline)
        try:
            await _acquire(self._all, deadline)
        except BaseException:
            if writes:
                self._writes.release()
            raise

    def release(self, *, writes: bool) -> None:
        """Free the slot."""
        self._all.release()
        if writes:
            self._writes.release()


async def _acquire(slots: asyncio.Semaphore, deadline: float) -> None:
    if not slots.locked():
        await slots.acquire()  # at once
        return
    try:
        async with asyncio.timeout_at(deadline):
            await slots.acquire()
    except TimeoutError:
        raise DatabaseTimeout from None
