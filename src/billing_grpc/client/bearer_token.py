"""The token that a client shows: asked for at every call, so that it rotates, and never repeated anywhere else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from billing_grpc.errors import ServerRefused
from billing_grpc.watched_file import WatchedFile

_MAX_FILE_BYTES: Final = 1 << 20
_TOKEN: Final = re.compile(r"[!-~]+")

TokenSource = Path | Callable[[], str]
"""A file that holds a bearer token and may be replaced, or what returns the one to show now."""


class BearerToken:
    """A token that may be another at every call.

    Args:
        source: where it comes from.

    Raises:
        TypeError: the source is neither a path nor a callable; a text is not taken for either.
    """

    def __init__(self, source: TokenSource) -> None:
        self._ask: Callable[[], object]
        if isinstance(source, Path):
            self._ask = _TokenFile(source).read
        elif callable(source):
            self._ask = source
        else:
            raise TypeError("token: give a pathlib.Path of a file that holds it, or a callable that returns it")

    def authorization(self) -> str:
        """The value of the `authorization` header of a call that starts now.

        Raises:
            ServerRefused: the token cannot be had, or is none.
        """
        try:
            token = self._ask()
        except ServerRefused:
            raise
        except Exception as error:
            raise ServerRefused("the token cannot be had: its source raised an error") from error
        # Never repeated in a message, and never sent: gRPC would quote it when it refuses the header.
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ServerRefused("the token is empty, no text, or holds characters that no token has")
        return f"Bearer {token}"


class _TokenFile:
    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, _MAX_FILE_BYTES)
        self._shown = ""
        self._unread = ""

    def read(self) -> str:
        if self._file.changed():
            try:
                self._shown, self._unread = self._file.read().decode("ascii", "replace").strip(), ""
            except OSError as error:
                self._unread = f"the token file {self._file.path} cannot be read: {error.strerror}"
        # A file that is being replaced may be gone for a moment; the last token is then still the best.
        if self._unread and not self._shown:
            raise ServerRefused(self._unread)
        return self._shown
