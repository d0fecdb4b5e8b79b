"""A file that may change at any time: by being written, replaced, or by a symbolic link that is swapped."""

from pathlib import Path


class WatchedFile:
    """Notices, for the price of one `stat`, that a file is another or has changed since it was last read.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Nothing is read yet; at most `max_bytes` ever are."""
        self.path = path
        self._max_bytes = max_bytes
        self._seen: tuple[int, ...] | None = None
        self._looked = False

    def changed(self) -> bool:
        """Whether there is something to read that was not read yet; also true when the file is gone since."""
        return not self._looked or self._signature() != self._seen

    def read(self) -> bytes:
        """The file's bytes now, cut to the maximum.

        Raises:
            OSError: it cannot be read.
        """
        # The signature is taken first: a change during the read is then seen as one the next time.
        self._seen = self._signature()
        self._looked = True
        with self.path.open("rb") as file:
            return file.read(self._max_bytes)

    def _signature(self) -> tuple[int, ...] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
