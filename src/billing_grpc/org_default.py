"""Where the organisation's default mode is published: a fixed text, or a file that may change at any time.

Hands on text; what it means is the resolver's business. A default that cannot be read counts as unset, which is closed.
"""

from pathlib import Path
from typing import Final, Protocol

import structlog

log = structlog.stdlib.get_logger(__name__)

_MAX_BYTES: Final = 4096
"""A mode is a word; what is longer than this is not one, and is cut rather than read into memory."""


class OrgDefault(Protocol):
    """The published org default."""

    def current(self) -> str | None:
        """The text as published now; None when there is none."""
        ...

    def reload(self) -> None:
        """Looks again, whether or not anything seems to have changed."""
        ...


class FixedOrgDefault:
    """An org default that stays what it was at the start."""

    def __init__(self, text: str | None) -> None:
        self._text = text

    def current(self) -> str | None:
        """The text given at the start."""
        return self._text

    def reload(self) -> None:
        """Nothing to look at."""


class FileOrgDefault:
    """An org default kept in a file, read anew as soon as the file is another or has changed.

    The check is one `stat` a call: a few microseconds, and no delay in which the old value would go on being used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._text: str | None = None
        self.reload()

    def current(self) -> str | None:
        """The file's text as it is now; None while it cannot be read."""
        if self._signature() != self._seen:
            self.reload()
        return self._text

    def reload(self) -> None:
        """Reads the file again."""
        before = self._text
        # The signature is taken first: a change during the read is then seen as one at the next call.
        self._seen = self._signature()
        try:
            with self._path.open("rb") as file:
                self._text = file.read(_MAX_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            self._text = None
            log.warning("org default unreadable, taken as unset", file=str(self._path), error=type(error).__name__)
        else:
            if self._text != before:
                log.info("org default read", file=str(self._path), org_default=self._text.strip()[:64])

    def _signature(self) -> tuple[int, ...] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
