"""Writes log lines through a bounded queue and a thread, so that no call waits for a log's reader."""

import logging
import select
import threading
import time
from collections.abc import Callable, MutableMapping
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Any, Final, TypeAlias

from billing_grpc.stalled_reader import PATIENCE, write_all

LENGTH: Final = 8192
"""How many lines may wait for the reader; more are dropped. They take about 20 MB."""

DROPPED: Final = "log lines were dropped: they could not be written"
_SAY_EVERY: Final = 1.0
_LONGEST_FLUSH: Final = 4.0
"""The longest flush, in seconds, while the reader takes lines. A stop flushes twice, after the drain."""

_PAUSE: Final = 0.01
"""Seconds in which lines gather after a write: to wake the thread for every line costs more than the line."""
_WHOLE: Final = select.PIPE_BUF
"""The most bytes that a pipe takes in one piece: workers share one, and their lines must not mix."""

Line: TypeAlias = MutableMapping[str, Any]
"""What one of our modules logs: the fields of a line, not rendered yet."""
_Item: TypeAlias = Line | str | threading.Event


class LogQueue(QueueHandler):
    """Hands lines to a thread that renders and writes them, and counts those that it has to drop.

    Never blocks. The queue is a `SimpleQueue`, whose `put` may also run in a signal's handler. Our own lines are put into
    it with `enqueue`; as a handler of `logging` it takes the records of libraries.

    Args:
        descriptor: where lines are written.
        encoding: of the lines.
        formatter: makes a line of a library's record, at once: its time and its call are those of this moment.
        render: makes a line of one of ours, its end included, on the writing thread.

    Attributes:
        unsaid: how many lines were dropped since that was last said in a line.
    """

    def __init__(
        self, descriptor: int, encoding: str, formatter: logging.Formatter, render: Callable[[Line], bytes]
    ) -> None:
        self._lines: SimpleQueue[_Item] = SimpleQueue()
        super().__init__(self._lines)
        self.setFormatter(formatter)
        self._on_drop: Callable[[], None] | None = None
        # One thread may take it twice: a signal's handler may log, and drop its line, at any moment.
        self._counting: Final = threading.RLock()
        self.unsaid = 0
        self._stood_at = -1
        self._writer = _Writer(self._lines, self, descriptor, encoding, render)
        self._writer.start()

    def on_drop(self, count: Callable[[], None]) -> None:
        """Call `count` for every line that is dropped from now on."""
        self._on_drop = count

    def prepare(self, record: logging.LogRecord) -> str:
        """Return what is queued of a library's record: its line."""
        return self.format(record)

    def enqueue(self, record: Any) -> None:
        """Queue a line, or drop it where too many wait; never a record, of which `prepare` has made a line."""
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
        with self._counting:
            self.unsaid += 1
        if self._on_drop is not None:
            self._on_drop()

    def said(self, lines: int) -> None:
        """Take note that so many of the dropped lines were said to be dropped."""
        with self._counting:
            self.unsaid -= lines

    def flush(self, patience: float = PATIENCE) -> None:
        """Wait until everything queued so far is written, but stop if the reader takes no line for `patience` seconds.

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


class _Writer(threading.Thread):
    """Writes lines that wait together in as few writes as keep each line whole."""

    def __init__(
        self,
        lines: "SimpleQueue[_Item]",
        queue: LogQueue,
        descriptor: int,
        encoding: str,
        render: Callable[[Line], bytes],
    ) -> None:
        super().__init__(name="log", daemon=True)
        self._lines = lines
        self._queue = queue
        self._descriptor = descriptor
        self._encoding = encoding
        self._render = render
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._said = 0.0
        self.handled = 0

    def run(self) -> None:
        """Write for as long as the process lives."""
        while True:
            self._take(self._lines.get())
            while not self._lines.empty():
                self._take(self._lines.get())
                self._say_dropped(at_once=False)
            self._write_held()
            self._say_dropped(at_once=True)
            time.sleep(_PAUSE)

    def _take(self, item: _Item) -> None:
        self.handled += 1
        if isinstance(item, threading.Event):
            self._write_held()
            self._say_dropped(at_once=True)
            item.set()
            return
        try:
            line = self._encoded(item) if isinstance(item, str) else self._render(item)
        except Exception:  # noqa: BLE001 - the thread must go on; the line counts as dropped
            self._queue.drop()
            return
        if self._held_bytes + len(line) > _WHOLE:
            self._write_held()
        self._held.append(line)
        self._held_bytes += len(line)

    def _write_held(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        if held and not self._written(b"".join(held)):
            for _ in held:
                self._queue.drop()

    def _say_dropped(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if not at_once and now - self._said < _SAY_EVERY:
            return
        if lines := self._queue.unsaid:
            self._said = now
            record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, DROPPED, None, None)
            record.lines = lines
            self._write_held()
            if self._written(self._encoded(self._queue.format(record))):
                self._queue.said(lines)

    def _encoded(self, line: str) -> bytes:
        return f"{line}\n".encode(self._encoding, "backslashreplace")

    def _written(self, data: bytes) -> bool:
        try:
            write_all(self._descriptor, data)
        except Exception:  # noqa: BLE001 - the thread must go on; the lines count as dropped
            return False
        return True
