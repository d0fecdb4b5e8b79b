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
    """The handlers of SIGINT and SIGTERM, from construction until the process ends.

    What the first signal does depends on the phase. During the start it raises `SystemExit`. While the process serves, it
    is the result of the future of `serving`. While the process ends, it is ignored. A second signal ends
    the process without waiting for its calls; signals after it are ignored.

    Args:
        second_ends: whether a second signal ends the process at once. False in a worker, which gets the same signal twice:
            from its parent and from a service manager that signals every process of the service.
    """

    def __init__(self, *, second_ends: bool = True) -> None:
        self._at_forced_exit: list[Callable[[], None]] = []
        self._second_ends = second_ends
        self._first: signal.Signals | None = None
        self._on_first: Callable[[signal.Signals], None] = _unwind
        for number in STOP:
            signal.signal(number, self._received)

    @contextmanager
    def serving(self) -> Iterator["asyncio.Future[signal.Signals]"]:
        """Yield a future whose result will be the first signal. Enter this on the running event loop."""
        loop = asyncio.get_running_loop()
        stop: asyncio.Future[signal.Signals] = loop.create_future()

        def resolve(number: signal.Signals) -> None:
            loop.call_soon_threadsafe(stop.set_result, number)

        self._on_first = resolve
        try:
            yield stop
        finally:
            self.ending()

    def at_forced_exit(self, call: Callable[[], None]) -> None:
        """Call `call` when a second signal ends the process; the calls run newest first."""
        self._at_forced_exit.append(call)

    def ending(self) -> None:
        """Ignore the first signal from here on: the process ends by itself."""
        self._on_first = _nothing

    def _received(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._first is None:
            self._first = signal.Signals(number)
            self._on_first(self._first)
        elif self._second_ends:
            # This interrupts the main thread at any point, and never returns to it. Further signals are ignored: each would
            # start this handler again inside itself, until the recursion is too deep and none of the calls can run.
            for each in STOP:
                signal.signal(each, signal.SIG_IGN)
            for call in reversed(self._at_forced_exit):
                with suppress(Exception):
                    call()
            os._exit(_EXIT + number)


@contextmanager
def on_hang_up(call: Callable[[], None]) -> Iterator[None]:
    """Call `call` on the running event loop for every SIGHUP. After the context, SIGHUP is ignored.

    The loop's own `add_signal_handler` does not fit: a loop that closes restores the default, which ends the process.
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
