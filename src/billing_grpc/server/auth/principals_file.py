"""The principals of a running server, from a file that is read again when it changes."""

from pathlib import Path
from typing import Final, Protocol

import structlog

from billing_grpc.errors import SettingsError
from billing_grpc.reloaded_file import ReloadedFile, problems_of
from billing_grpc.server.auth.principals import Principals
from billing_grpc.watched_file import WatchedFile

log = structlog.stdlib.get_logger(__name__)

_MAX_BYTES: Final = 256 << 10
"""Enough for a thousand principals; to parse a longer file would delay calls by seconds."""


class PrincipalDirectory(Protocol):
    """The source of the known principals."""

    def current(self) -> Principals:
        """Return the principals in force."""

    def reload(self) -> None:
        """Read the source again, changed or not."""


class FixedPrincipals:
    """Principals that never change."""

    def __init__(self, principals: Principals) -> None:
        self._principals = principals

    def current(self) -> Principals:
        """Return the principals given at the start."""
        return self._principals

    def reload(self) -> None:
        """Do nothing."""


class PrincipalsFile:
    """Principals in a file.

    A change takes effect with the next call. While the file is broken, empty or missing, the principals that it held before
    stay in force, and the log says so at once and then every ten seconds of calls.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            SettingsError: the file cannot be read or is wrong; names every problem.
        """
        self._file = WatchedFile(path, _MAX_BYTES)
        self._principals = ReloadedFile([self._file], self._read, on_made=self._log_read, on_broken=self._log_broken)

    def current(self) -> Principals:
        """Return the principals of the file's last valid content."""
        return self._principals.current()

    def reload(self) -> None:
        """Read the file again; log its problems even if the same were logged a moment ago."""
        self._principals.reload()

    def _log_read(self, _: Principals | None, known: Principals) -> None:
        tables = (known.by_digest, known.by_uri, known.by_dns)
        names = sorted({principal.name for table in tables for principal in table.values()})
        log.info("tokens file read", file=str(self._file.path), principals=names)

    def _log_broken(self, error: Exception) -> None:
        problems = problems_of(error)
        log.error("tokens file is broken, the old one stays in force", file=str(self._file.path), problems=problems)

    def _read(self) -> Principals:
        try:
            text = self._file.read().decode()
        except OSError as error:
            raise SettingsError([f"{self._file.path}: {error.strerror}"]) from error
        except UnicodeDecodeError as error:
            raise SettingsError([f"{self._file.path}: not UTF-8"]) from error
        try:
            return Principals.parse(text)
        except SettingsError as error:
            raise SettingsError([f"{self._file.path}: {problem}" for problem in error.problems]) from error
