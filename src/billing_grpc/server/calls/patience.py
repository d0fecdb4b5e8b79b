"""Limits how long calls wait for their callers, with one timer for all of them."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final


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
        self._waiting: dict[_Wait, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def one(self) -> "_Wait":
        """Return a context that limits the time that its body may take; the body belongs to one task.

        Raises:
            TimeoutError: on leaving the context: the time was over, or too many calls have begun to wait since.
        """
        return _Wait(self)

    def until_ended(self) -> Callable[[Any], None]:
        """Limit the time that the current task may still take, by cancelling it; return what to call at its end."""
        wait = _Wait(self)
        wait.begin()
        return lambda _: self.end(wait)

    def begin(self, wait: "_Wait") -> None:
        """Note that a call waits."""
        loop = asyncio.get_running_loop()
        self._waiting[wait] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._expire)
        if self._limit is not None and len(self._waiting) > self._limit:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.expire()

    def end(self, wait: "_Wait") -> None:
        """Note that a call waits no longer."""
        self._waiting.pop(wait, None)

    def _expire(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        while self._waiting:
            oldest, deadline = next(iter(self._waiting.items()))
            left = deadline - loop.time()
            if left > 0:
                self._timer = loop.call_later(left, self._expire)
                return
            del self._waiting[oldest]
            oldest.expire()


class _Wait:
    __slots__ = ("_cancelling", "_expired", "_patience", "_task")

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._expired = False

    def __enter__(self) -> None:
        self.begin()

    def begin(self) -> None:
        task: Any = asyncio.current_task()  # a call is a task, so it is not `None`
        self._task, self._cancelling = task, task.cancelling()
        self._patience.begin(self)

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._expired:
            self._patience.end(self)
        # As in `asyncio.timeout`: the error is ours only if the task is not being cancelled otherwise.
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
