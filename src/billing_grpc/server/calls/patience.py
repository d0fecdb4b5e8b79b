"""Limits how long calls wait for their callers, with one timer for all of them."""

import asyncio
from types import TracebackType
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
        # Not in `_Wait`, to which the call of the task refers: the two would be freed by the garbage collector alone.
        self._waiting: dict[_Wait, tuple[float, asyncio.Task[Any]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def one(self) -> "_Wait":
        """Return a context that limits the time that its body may take; the body belongs to one task.

        Raises:
            TimeoutError: on leaving the context: the time was over, or too many calls have begun to wait since.
        """
        return _Wait(self)

    def until_ended(self) -> None:
        """Limit the time that the current task may still take, by cancelling it."""
        wait, task = _Wait(self), _current_task()
        self.begin(wait, task)
        task.add_done_callback(lambda _: self.end(wait))

    def begin(self, wait: "_Wait", task: "asyncio.Task[Any]") -> None:
        """Note that a call waits, in this task."""
        loop = asyncio.get_running_loop()
        self._waiting[wait] = loop.time() + self._seconds, task
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)
        if self._limit is not None and len(self._waiting) > self._limit:
            self._expire(next(iter(self._waiting)))

    def end(self, wait: "_Wait") -> None:
        """Note that a call waits no longer."""
        self._waiting.pop(wait, None)

    def _look(self) -> None:
        """Look at the clock: expire each wait whose time is over."""
        loop, self._timer = asyncio.get_running_loop(), None
        while self._waiting:
            oldest, (deadline, _) = next(iter(self._waiting.items()))
            left = deadline - loop.time()
            if left > 0:
                self._timer = loop.call_later(left, self._look)
                return
            self._expire(oldest)

    def _expire(self, wait: "_Wait") -> None:
        _, task = self._waiting.pop(wait)
        wait.expired = True
        task.cancel()


class _Wait:
    __slots__ = ("_cancelling", "_patience", "expired")

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.expired = False

    def __enter__(self) -> None:
        task = _current_task()
        self._cancelling = task.cancelling()
        self._patience.begin(self, task)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.expired:
            self._patience.end(self)
        # As in `asyncio.timeout`: the error is ours only if the task is not being cancelled otherwise.
        elif _current_task().uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error


def _current_task() -> "asyncio.Task[Any]":
    return cast("asyncio.Task[Any]", asyncio.current_task())  # a call is a task, so it is not `None`
