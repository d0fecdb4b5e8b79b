"""Where the organisation's default mode is published: a fixed text, or a file that may change at any time.

Hands on text; what it means is the resolver's business. A default that cannot be read counts as unset, which is closed.
The text itself is never logged: a secret may have been put there by mistake.
"""

from pathlib import Path
from typing import Final, Protocol

import structlog

from billing_grpc.reloaded_file import ReloadedFile
from billing_grpc.resolver import recognise_org_default
from billing_grpc.watched_file import WatchedFile

log = structlog.stdlib.get_logger(__name__)

_MAX_BYTES: Final = 4096
"""A mode is a word; a file longer than this is none, and cut it might become one: it counts as unreadable."""

_RETRY_SECONDS: Final = 0.2
"""Shorter than for other files: until it is read again, calls that should be open are closed."""


class OrgDefault(Protocol):
    """The published org default."""

    def current(self) -> str | None:
        """The text as published now; None when there is none."""

    def reload(self) -> None:
        """Looks again, whether or not anything seems to have changed."""


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
        self._file = WatchedFile(path, _MAX_BYTES, _RETRY_SECONDS)
        self._text: ReloadedFile[str | None] = ReloadedFile(
            [self._file], self._read, on_made=self._log_read, on_broken=self._log_unreadable, fallback=lambda: None
        )

    def current(self) -> str | None:
        """The file's text as it is now; None while it cannot be read."""
        return self._text.current()

    def reload(self) -> None:
        """Reads the file again, and says so if it cannot be read, even if that was said a moment ago."""
        self._text.reload()

    def _read(self) -> str:
        return self._file.read().decode()

    def _log_read(self, before: str | None, text: str | None) -> None:
        if text is not None and text != before:
            log.info("org default read", file=str(self._file.path), org_default=_meaning(text))

    def _log_unreadable(self, error: Exception) -> None:
        path, kind = str(self._file.path), type(error).__name__
        problem = "not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or ""
        log.warning("org default unreadable, taken as unset", file=path, error=kind, problem=problem)


def _meaning(text: str) -> str:
    mode = recognise_org_default(text)
    if mode is not None:
        return mode.value
    # Bytes know ASCII space only, as the resolver does.
    return "unrecognised" if text.encode().strip() else "unset"
