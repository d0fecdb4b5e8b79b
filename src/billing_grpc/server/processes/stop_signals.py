"""SIGINT and SIGTERM: the first asks the process to stop, the second ends it at once. SIGHUP never ends it."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

STOP: Final = (signal.SIGINT, signal.SIGTERM)
_EXIT: Final = 128
"""A process that a signal ended exits with this and the signal's number."""


class StopSignals:
    """What the signals do, from the moment this is made until the process ends.

    The first, while the process still starts, unwinds it like an exit; while it serves, it is handed to who serves; while
    it ends anyway, it changes nothing. The second does not wait for anything.

    Args:
        impatient: whether a second signal ends the process at once. Not in a worker, which gets the same wish from its
            parent and from whoever signals all processes of a service.
    """

    def __init__(self, *, impatient: bool = True) -> None:
        self._taken_along: list[Callable[[], None]] = []
        self._impatient = impatient
        self._first: signal.Signals | None = None
        self._tell: Callable[[signal.Signals], None] = _unwind
        for number in STOP:
            signal.signal(number, self._received)

    @contextmanager
    def serving(self) -> Iterator["asyncio.Future[signal.Signals]"]:
        """From here on the first signal is the result of the future. Must be entered on the running event loop."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[signal.Signals] = loop.create_future()

        def tell(number: signal.Signals) -> None:
            loop.call_soon_threadsafe(told.set_result, number)

        self._tell = tell
        try:
            yield told
        finally:
            self.ending()

    def take_along(self, end: Callable[[], None]) -> None:
        """Ends something with the process when a second signal does not let it end in peace; the newest first."""
        self._taken_along.append(end)

    def ending(self) -> None:
        """From here on the process ends by itself, and a first signal must not get in its way."""
        self._tell = _nothing

    def _received(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._first is None:
            self._first = signal.Signals(number)
            self._tell(self._first)
        elif self._impatient:
            # Runs on top of whatever the main thread was doing, and never goes back to it.
            for end in reversed(self._taken_along):
                with suppress(Exception):
                    end()
            os._exit(_EXIT + number)


@contextmanager
def hang_ups(call: Callable[[], None]) -> Iterator[None]:
    """Call `call` on the running event loop for every SIGHUP. Afterwards, while the process still ends, it changes nothing.

    Not with the loop's own means: a loop that closes restores the default, which ends the process.
    """
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _unwind(number: signal.Signals) -> None:
    sys.exit(_EXIT + number)


def _nothing(number: signal.Signals) -> None:
    del number
