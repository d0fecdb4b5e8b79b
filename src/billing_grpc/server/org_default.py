"""The source of the organisation's default mode: a fixed text, or a file that may change at any time.

It returns text, which the resolver interprets. A default that cannot be read counts as unset. The text itself is never
logged: a secret may have been put there by mistake.
"""

from pathlib import Path
from typing import Final, Protocol

import structlog

from billing_grpc.reloaded_file import ReloadedFile
from billing_grpc.resolver import recognise_org_default
from billing_grpc.watched_file import WatchedFile

log = structlog.stdlib.get_logger(__name__)

_MAX_BYTES: Final = 4096
"""A longer file counts as unreadable: cut to this length, it could read as a mode."""

_RETRY_SECONDS: Final = 0.2
"""Shorter than for other files: until the file is read again, decisions fall back to `platform_managed`."""


class OrgDefault(Protocol):
    """The published org default."""

    def current(self) -> str | None:
        """Return the text as published now; `None` if the default is unset or cannot be read."""

    def reload(self) -> None:
        """Read the source again, changed or not."""


class FixedOrgDefault:
    """An org default that never changes."""

    def __init__(self, text: str | None) -> None:
        self._text = text
        if text is not None and _meaning(text) == "unrecognised":
            log.warning("org default not recognised, taken as unset")

    def current(self) -> str | None:
        """Return the text given at the start."""
        return self._text

    def reload(self) -> None:
        """Do nothing."""


class FileOrgDefault:
    """An org default in a file, which is read again as soon as it changes or is replaced.

    Each call checks the file with one `stat`, which takes microseconds, so the old value is never used after a change.
    """

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, _MAX_BYTES, _RETRY_SECONDS)
        self._text: ReloadedFile[str | None] = ReloadedFile(
            [self._file], self._read, on_made=self._log_read, on_broken=self._log_unreadable, fallback=lambda: None
        )

    def current(self) -> str | None:
        """Return the file's text as it is now; `None` while it cannot be read."""
        return self._text.current()

    def reload(self) -> None:
        """Read the file again; log a failure even if the same was logged a moment ago."""
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
    # `bytes.strip` removes ASCII white space only, as the resolver does.
    return "unrecognised" if text.encode().strip() else "unset"
