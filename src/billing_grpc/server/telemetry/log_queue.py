"""Writes log lines through a bounded queue and a thread, so that no call waits for a log's reader."""

import logging
import threading
import time
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Final, TypeAlias

from billing_grpc.standing_reader import PATIENCE, write_all

LENGTH: Final = 8192
"""How many lines may wait for the reader; more are dropped. They take about 20 MB."""

DROPPED: Final = "log lines were dropped: they could not be written"
_SAY_EVERY: Final = 1.0
_LONGEST_FLUSH: Final = 4.0
"""Seconds that a stop waits for a reader that is slow and moves; it is asked for twice, and comes on top of the drain."""

_Item: TypeAlias = logging.LogRecord | str | threading.Event


class LogQueue(QueueHandler):
    """Hands lines to a thread that writes them, and counts those that it has to drop.

    Never blocks. The queue is a `SimpleQueue`, whose `put` may also run in a signal's handler.

    Args:
        descriptor: where lines are written.
        encoding: of the lines.
        formatter: makes a line of a record; for this package's own records on the writing thread.

    Attributes:
        unsaid: how many lines were dropped since that was last said in a line.
    """

    def __init__(self, descriptor: int, encoding: str, formatter: logging.Formatter) -> None:
        self._lines: SimpleQueue[_Item] = SimpleQueue()
        super().__init__(self._lines)
        self.setFormatter(formatter)
        self._on_drop: Callable[[], None] | None = None
        self.unsaid = 0
        self._stood_at = -1
        self._writer = _Writer(self._lines, self, descriptor, encoding)
        self._writer.start()

    def on_drop(self, count: Callable[[], None]) -> None:
        """Call `count` for every line that is dropped from now on."""
        self._on_drop = count

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord | str:
        """Return what is queued: a library's record as a line, because its time and its call are those of this moment."""
        return record if isinstance(record.msg, dict) else self.format(record)

    def enqueue(self, record: _Item) -> None:
        """Queue a record or a line, or drop it where too many wait."""
        if self._lines.qsize() < LENGTH:
            self._lines.put(record)
        else:
            self.drop()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Count a record that no line can be made of; logging's own way would write to standard error, and wait."""
        del record
        self.drop()

    def drop(self) -> None:
        """Count one line as dropped."""
        with self._locked():
            self.unsaid += 1
        if self._on_drop is not None:
            self._on_drop()

    def said(self, lines: int) -> None:
        """Take note that so many of the dropped lines were said to be dropped."""
        with self._locked():
            self.unsaid -= lines

    def flush(self, patience: float = PATIENCE) -> None:
        """Wait until everything queued so far is written, for as long as the reader takes a line in `patience` seconds.

        `logging` calls this when the process ends. A reader that still stands where it stood is not waited for again.
        """
        if self._writer.handled == self._stood_at:
            return
        reached = threading.Event()
        self._lines.put(reached)
        deadline = time.monotonic() + _LONGEST_FLUSH
        while time.monotonic() < deadline:
            before = self._writer.handled
            if reached.wait(patience):
                return
            if self._writer.handled == before:
                self._stood_at = before
                return

    def _locked(self) -> threading.RLock:
        # logging makes it in the constructor, and `handle` holds it around `emit`.
        assert self.lock is not None  # noqa: S101 - for the type checker
        return self.lock


class _Writer(QueueListener):
    """Writes line by line: workers share a pipe, which keeps a line whole only when it is one short write."""

    def __init__(self, lines: "SimpleQueue[_Item]", queue: LogQueue, descriptor: int, encoding: str) -> None:
        super().__init__(lines)
        self._lines = lines
        self._queue = queue
        self._descriptor = descriptor
        self._encoding = encoding
        self._said = 0.0
        self.handled = 0

    def handle(self, record: _Item) -> None:
        self.handled += 1
        if isinstance(record, threading.Event):
            self._say_dropped(at_once=True)
            record.set()
            return
        if self._write(record):
            self._say_dropped(at_once=self._lines.empty())
        else:
            self._queue.drop()

    def _write(self, record: logging.LogRecord | str) -> bool:
        try:
            line = record if isinstance(record, str) else self._queue.format(record)
            write_all(self._descriptor, f"{line}\n".encode(self._encoding, "backslashreplace"))
        except Exception:  # noqa: BLE001 - a line about it would go through this very thread, which must go on
            return False
        return True

    def _say_dropped(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if not at_once and now - self._said < _SAY_EVERY:
            return
        if lines := self._queue.unsaid:
            self._said = now
            record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, DROPPED, None, None)
            record.lines = lines
            if self._write(record):
                self._queue.said(lines)
