"""Ask for the client's token at every call, so that tokens rotate; never repeat a token anywhere else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from billing_grpc.errors import ServerRefused
from billing_grpc.reloaded_file import ReloadedFile
from billing_grpc.watched_file import WatchedFile

_MAX_FILE_BYTES: Final = 1 << 20
_TOKEN: Final = re.compile(r"[!-~]+")

TokenSource = Path | Callable[[], str]
"""A file that holds a bearer token and may be replaced, or a callable that returns the current token."""


class BearerToken:
    """A token that may change from call to call.

    Args:
        source: the token's file, or a callable that returns the token.

    Raises:
        TypeError: the source is neither a path nor a callable; a string is neither.
    """

    def __init__(self, source: TokenSource) -> None:
        self._read: Callable[[], object]
        if isinstance(source, Path):
            self._read = _TokenFile(source).read
        elif callable(source):
            self._read = source
        else:
            raise TypeError("token: give a pathlib.Path of a file that holds it, or a callable that returns it")

    def authorization(self) -> str:
        """Return the value of the `authorization` header for a call that starts now.

        Raises:
            ServerRefused: the source failed, or it returned something that is not a token.
        """
        try:
            token = self._read()
        except ServerRefused:
            raise
        except Exception as error:
            raise ServerRefused("the token cannot be read: its source raised an error") from error
        # An invalid token is not sent, because gRPC quotes a header that it refuses; no message repeats it either.
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ServerRefused("the token is empty, is not a string, or holds characters that a token cannot have")
        return f"Bearer {token}"


class _TokenFile:
    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, _MAX_FILE_BYTES)
        self._token: ReloadedFile[str] | None = None

    def read(self) -> str:
        """Return the file's token. While the file cannot be read, return the last one: it may be being replaced.

        Raises:
            ServerRefused: the file cannot be read, and never could be.
        """
        if self._token is None:
            try:
                self._token = ReloadedFile([self._file], self._load, on_made=_ignore, on_broken=_ignore)
            except OSError as error:
                raise ServerRefused(f"the token file {self._file.path} cannot be read: {error.strerror}") from error
        return self._token.current()

    def _load(self) -> str:
        return self._file.read().decode("ascii", "replace").strip()


def _ignore(*_: object) -> None:
    """Log nothing: a call whose token the server refuses is logged with its reason."""
