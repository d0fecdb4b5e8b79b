"""A value made from files: made again when they change; while they are broken, the last value or a fallback."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from billing_grpc.errors import SettingsError
from billing_grpc.watched_file import Complaint, WatchedFile

Value = TypeVar("Value")


class ReloadedFile(Generic[Value]):
    """A value made from files. Its methods may be called on any thread.

    Args:
        files: the files to check for changes.
        make: read the files and return the value, or raise.
        on_made: called with the value before and the value after, each time that it was made again.
        on_broken: called with the error if the value cannot be made: at once, then at most every ten seconds.
        fallback: returns the value to use while it cannot be made; without it the last good value stays in force, and the
            first attempt must succeed.
        retry_seconds: how often files that are broken and do not change are tried again; `None` for never.

    Raises:
        Exception: the error of the first call of `make`, if there is no fallback.
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
        # A signal's handler may ask for the value while its own thread makes it.
        self._lock: Final = threading.RLock()
        self._complaint: Final = Complaint()
        self._error: Exception | None = None
        self._tried = 0.0
        if fallback is None:
            self._value = make()
        else:
            self._value = fallback()
            self._make_anew()

    def current(self) -> Value:
        """Return the value of the files as they are now; while they are broken, the fallback or the last good value."""
        with self._lock:
            if any(map(WatchedFile.changed, self._files)):
                self._make_anew()
            elif self._error is not None:
                self._try_again(self._error)
            return self._value

    def reload(self) -> None:
        """Make the value again; report a failure even if the same was reported a moment ago."""
        with self._lock:
            self._complaint.over()
            self._make_anew()

    def _try_again(self, error: Exception) -> None:
        if self._retry_seconds is not None and time.monotonic() - self._tried >= self._retry_seconds:
            self._make_anew()
        else:
            self._complain(error)

    def _make_anew(self) -> None:
        self._tried = time.monotonic()
        try:
            made = self._make()
        except Exception as error:  # noqa: BLE001 - gRPC's threads and signal callbacks lose what is raised
            if self._fallback is not None:
                self._value = self._fallback()
            self._error = error
            self._complain(error)
        else:
            self._error = None
            self._complaint.over()
            before, self._value = self._value, made
            self._on_made(before, made)

    def _complain(self, error: Exception) -> None:
        if self._complaint.due(f"{type(error).__name__}: {error}"):
            self._on_broken(error)


def problems_of(error: Exception) -> list[str]:
    """Return the problems of the files, or the type of an unexpected error."""
    return error.problems if isinstance(error, SettingsError) else [f"unexpected {type(error).__name__}"]
