"""Write to a reader that may have stopped reading: from a separate thread, with a bounded wait."""

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

PATIENCE: Final = 1.0
"""Seconds that a process waits for a reader before it ends."""


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, however long the reader takes.

    Bypasses Python's streams: a thread that waits while it holds a stream's lock aborts the interpreter at its end.

    Raises:
        OSError: the descriptor is closed or broken, or its disk is full.
    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            # Another process that shares this file description may have made it non-blocking.
            waiting = select.poll()
            waiting.register(descriptor, select.POLLOUT)
            waiting.poll()


def write_within(descriptor: int, data: bytes, seconds: float = PATIENCE) -> bool:
    """Write all of `data`; return whether the write ended within `seconds`. Raises nothing."""
    thread = _writing(descriptor, data)
    thread.join(seconds)
    return not thread.is_alive()


@contextmanager
def announcing(descriptor: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes lines without waiting; wait `PATIENCE` seconds for each of them at the end.

    A line that cannot be written is dropped; the log has the same text.
    """
    threads: list[threading.Thread] = []
    try:
        yield lambda text: threads.append(_writing(descriptor, f"{text}\n".encode("utf-8", "backslashreplace")))
    finally:
        for thread in threads:
            thread.join(PATIENCE)


def _writing(descriptor: int, data: bytes) -> threading.Thread:
    def write() -> None:
        with suppress(OSError):
            write_all(descriptor, data)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread
