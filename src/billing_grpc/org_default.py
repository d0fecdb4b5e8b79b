"""Where the organisation's default mode is published: a fixed text, or a file that may change at any time.

Hands on text; what it means is the resolver's business. A default that cannot be read counts as unset, which is closed.
"""

from pathlib import Path
from typing import Final, Protocol

import structlog

from billing_grpc.watched_file import WatchedFile

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
        self._file = WatchedFile(path, _MAX_BYTES)
        self._text: str | None = None
        self.reload()

    def current(self) -> str | None:
        """The file's text as it is now; None while it cannot be read."""
        if self._file.changed():
            self.reload()
        return self._text

    def reload(self) -> None:
        """Reads the file again."""
        before, path = self._text, str(self._file.path)
        try:
            self._text = self._file.read().decode()
        except (OSError, UnicodeDecodeError) as error:
            self._text = None
            log.warning("org default unreadable, taken as unset", file=path, error=type(error).__name__)
        else:
            if self._text != before:
                log.info("org default read", file=path, org_default=self._text.strip()[:64])
