"""The file of principals while the server runs: read anew when it changes, never replaced by a broken one."""

from pathlib import Path
from typing import Final, Protocol

import structlog

from billing_grpc.errors import SettingsError
from billing_grpc.reloaded_file import ReloadedFile, problems_of
from billing_grpc.server.auth.principals import Principals
from billing_grpc.watched_file import WatchedFile

log = structlog.stdlib.get_logger(__name__)

_MAX_BYTES: Final = 256 << 10
"""Room for a thousand principals; while more than this is parsed, calls would wait for seconds."""


class PrincipalDirectory(Protocol):
    """Who is known right now."""

    def current(self) -> Principals:
        """The principals in force."""

    def reload(self) -> None:
        """Looks again, whether or not anything seems to have changed."""


class FixedPrincipals:
    """Principals that stay what they were at the start."""

    def __init__(self, principals: Principals) -> None:
        self._principals = principals

    def current(self) -> Principals:
        """The principals given at the start."""
        return self._principals

    def reload(self) -> None:
        """Nothing to look at."""


class PrincipalsFile:
    """Principals kept in a file.

    A change takes effect with the next call. A file that is broken, empty or gone changes nothing: whoever was known
    stays known, and the log says so at once and every ten seconds of calls until it is mended.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            SettingsError: it cannot be read, or what is wrong with it.
        """
        self._file = WatchedFile(path, _MAX_BYTES)
        self._principals = ReloadedFile([self._file], self._read, on_made=self._log_read, on_broken=self._log_broken)

    def current(self) -> Principals:
        """The principals of the file as it was when it was last right."""
        return self._principals.current()

    def reload(self) -> None:
        """Reads the file again, and says so if it is broken, even if that was said a moment ago."""
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
