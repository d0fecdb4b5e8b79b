"""A value that is made of files: made anew when they change, and kept, or replaced by a fallback, while they are broken."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from billing_grpc.errors import SettingsError
from billing_grpc.watched_file import Complaint, WatchedFile

Value = TypeVar("Value")


class ReloadedFile(Generic[Value]):
    """A value made of files. May be asked on any thread.

    Args:
        files: look at these for changes.
        make: read the files and return the value, or raise.
        made: is told the value before and after each time that it was made anew.
        broken: is told the error when it cannot be made: at once, then every ten seconds of askings while that lasts.
        fallback: returns the value while it cannot be made; without it the last good one stays, and the first must be good.
        retry_seconds: how often files that are broken and do not change are tried again; `None` for never.

    Raises:
        Exception: whatever `make` raises, where there is no fallback.
    """

    def __init__(
        self,
        files: Sequence[WatchedFile],
        make: Callable[[], Value],
        *,
        on_made: Callable[[Value | None, Value], None],
        on_broken: Callable[[Exception], None],
        fallback: Callable[[], Value] | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        self._files: Final = files
        self._make: Final = make
        self._on_made: Final = on_made
        self._on_broken: Final = on_broken
        self._fallback: Final = fallback
        self._retry_seconds: Final = retry_seconds
        self._lock: Final = threading.Lock()
        self._complaint: Final = Complaint()
        self._error: Exception | None = None
        self._tried = 0.0
        if fallback is None:
            self._value = make()
        else:
            self._value = fallback()
            self._make_anew()

    def current(self) -> Value:
        """Return the value of the files as they are now, or what stands for it while they are broken."""
        with self._lock:
            if any(file.changed() for file in self._files) or self._due():
                self._make_anew()
            elif self._error is not None:
                self._complain(self._error)
            return self._value

    def reload(self) -> None:
        """Make the value again; if that fails, say so, even if that was said a moment ago."""
        with self._lock:
            self._complaint.over()
            self._make_anew()

    def _due(self) -> bool:
        if self._error is None or self._retry_seconds is None:
            return False
        return time.monotonic() - self._tried >= self._retry_seconds

    def _make_anew(self) -> None:
        before, self._tried = self._value, time.monotonic()
        try:
            self._value = self._make()
        except Exception as error:  # noqa: BLE001 - on gRPC's threads and in a signal's callback nobody would hear of it
            if self._fallback is not None:
                self._value = self._fallback()
            self._error = error
            self._complain(error)
        else:
            self._error = None
            self._complaint.over()
            self._on_made(before, self._value)

    def _complain(self, error: Exception) -> None:
        if self._complaint.due(f"{type(error).__name__}: {error}"):
            self._on_broken(error)


def problems_of(error: Exception) -> list[str]:
    """Return what to say of an error: what is wrong with the files, or the kind of an error that nobody expected."""
    return error.problems if isinstance(error, SettingsError) else [f"unexpected {type(error).__name__}"]
