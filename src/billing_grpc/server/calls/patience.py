"""Limits how long calls wait for their callers, with one timer for all of them."""

import asyncio
import time
from typing import Any, Final, cast


class Patience:
    """The calls that wait for their callers, each for at most the same time.

    Calls that have the same time run out of it in the order in which they began to wait, so one timer, for the oldest, is
    enough. `asyncio.timeout` would make one for each wait.

    Args:
        seconds: how long a call may wait.
        limit: how many calls may wait; beyond, the oldest is out of time. `None` for any number.
    """

    def __init__(self, seconds: float, limit: int | None = None) -> None:
        self._seconds: Final = seconds
        self._limit: Final = limit
        # The tasks of the calls, each with the end of its time in the clock of `time.monotonic`.
        self._waiting: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> "asyncio.Task[Any]":
        """Begin a wait of the current task, and return the task, for `end`.

        The task is cancelled when its time is over, or when too many calls have begun to wait since.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task())  # each call has one
        self._waiting[task] = time.monotonic() + self._seconds
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)
        if self._limit is not None and len(self._waiting) > self._limit:
            self._expire(next(iter(self._waiting)))
        return task

    def end(self, task: "asyncio.Task[Any]") -> bool:
        """End a wait; return whether it ended in time."""
        return self._waiting.pop(task, None) is not None

    def _look(self) -> None:
        """Look at the clock: expire each wait whose time is over."""
        self._timer = None
        while self._waiting:
            oldest, deadline = next(iter(self._waiting.items()))
            left = deadline - time.monotonic()
            if left > 0:
                self._timer = asyncio.get_running_loop().call_later(left, self._look)
                return
            self._expire(oldest)

    def _expire(self, task: "asyncio.Task[Any]") -> None:
        del self._waiting[task]
        task.cancel()
