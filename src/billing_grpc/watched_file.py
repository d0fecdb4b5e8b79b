"""A file that may change at any time: it may be written, be replaced, or be a symbolic link that is swapped."""

import errno
import os
import stat
import time
from pathlib import Path
from typing import Final

REPEAT_SECONDS: Final = 10.0
"""Seconds after which a lasting problem is reported again."""

_GRAIN: Final = 0.05
_COARSE_GRAIN: Final = 2.0
"""Seconds within which a second change may leave the same times: in most file systems, and in those with whole seconds."""
_SECOND: Final = 1_000_000_000

# A pipe in the file's place must not block `open`, and a terminal must not become the controlling terminal.
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class WatchedFile:
    """Notice with one `stat` whether a file has changed or was replaced since it was last read.

    A change soon after a read may leave the size and all times as they were. So a file that was just read is read again and
    compared, until a comparison that comes after the grain of the file system's times finds it unchanged.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, max_bytes: int, retry_seconds: float = 1.0) -> None:
        """Watch a file; this reads nothing yet, and a file of more than `max_bytes` is never read."""
        self.path = path
        self._max_bytes = max_bytes
        self._retry_seconds = retry_seconds
        self._looked = False
        self._seen: tuple[int, ...] | None = None
        self._unsettled: tuple[bytes, float] | None = None
        self._failed: tuple[tuple[int, ...] | None, float] | None = None

    def changed(self) -> bool:
        """Return whether the file should be read: it has changed, has gone, or was never read.

        After a failed read that is so as soon as the file changes, or else after `retry_seconds`: the cause may have been
        this process and not the file.
        """
        if not self._looked:
            return True
        now = self._signature()
        if self._failed is None:
            return now != self._seen or (self._unsettled is not None and self._differs(*self._unsettled))
        tried, at = self._failed
        return now != tried or time.monotonic() - at >= self._retry_seconds

    def read(self) -> bytes:
        """Return all bytes of the file.

        Raises:
            OSError: the file cannot be read, is no regular file, or is longer than the maximum.
        """
        # The signature comes first, so that a change during the read is noticed the next time.
        signature = self._signature()
        self._looked = True
        try:
            content = self._content()
        except OSError:
            self._failed = signature, time.monotonic()
            raise
        self._seen, self._failed = signature, None
        self._unsettled = content, time.monotonic()
        return content

    def _differs(self, content: bytes, read_at: float) -> bool:
        """Return whether the content differs from what was read at this moment, although `stat` is the same."""
        grain = _COARSE_GRAIN if self._seen is not None and self._seen[-1] % _SECOND == 0 else _GRAIN
        settles = time.monotonic() - read_at > grain
        try:
            same = self._content() == content
        except OSError:
            return True
        if same and settles:
            self._unsettled = None
        return not same

    def _content(self) -> bytes:
        descriptor = os.open(self.path, _FLAGS)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(self._max_bytes + 1)
        finally:
            os.close(descriptor)
        # A part of a file may mean the opposite of the whole.
        if len(content) > self._max_bytes:
            raise OSError(errno.EFBIG, f"longer than {self._max_bytes} bytes")
        return content

    def _signature(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Complaint:
    """Decide when to report a problem that may last: at once if it is new, then every `REPEAT_SECONDS`."""

    def __init__(self) -> None:
        """Start without a problem."""
        self._problem: str | None = None
        self._said = 0.0

    def due(self, problem: str) -> bool:
        """Return whether to report this problem now; the caller then reports it."""
        now = time.monotonic()
        if problem == self._problem and now - self._said < REPEAT_SECONDS:
            return False
        self._problem, self._said = problem, now
        return True

    def over(self) -> None:
        """Forget the problem: it is gone, or its next occurrence must be reported at once."""
        self._problem = None
