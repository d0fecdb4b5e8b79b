"""Writes for a reader that may stand still: from a thread of its own, and waited for no longer than there is time."""

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

PATIENCE: Final = 1.0
"""Seconds that a process which ends anyway waits for a reader."""


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
            # Whoever shares the other end's description may have set it to non-blocking.
            waiting = select.poll()
            waiting.register(descriptor, select.POLLOUT)
            waiting.poll()


def write_within(descriptor: int, data: bytes, seconds: float = PATIENCE) -> bool:
    """Write all of `data`; return whether that was done after `seconds`. Raises nothing."""
    thread = _writing(descriptor, data)
    thread.join(seconds)
    return not thread.is_alive()


@contextmanager
def announcing(descriptor: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes lines without waiting; wait `PATIENCE` seconds for each of them at the end.

    What cannot be written is left out: the process has other work, and says the same in its log.
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
