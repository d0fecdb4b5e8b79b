"""Ask for a decision, once or for some seconds, and return the fallback whenever there is no usable answer."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from billing_grpc.client.fallback_log import record_fallback
from billing_grpc.model import ResolutionError

PAUSE: Final = 0.25
"""Seconds between two attempts."""

_LEAST: Final = 0.05
"""The least number of seconds for the last attempt."""

Item = TypeVar("Item")
Decision = TypeVar("Decision")


async def decide(
    name: str,
    ask: Callable[[], Awaitable[Decision]],
    fall_back: Callable[[ResolutionError], Decision],
    *,
    decisions: int = 1,
) -> Decision:
    """Return what `ask` returns, or the fallback if it raises. Raise nothing but the cancellation of the task.

    Args:
        name: the method's bare name.
        ask: makes the call and reads the answer.
        fall_back: returns the fallback for an error.
        decisions: how many decisions get the fallback at once.
    """
    try:
        return await ask()
    except Exception as error:  # noqa: BLE001 - a bug of ours gets the fallback too; `record_fallback` logs the traceback
        return fall_back(record_fallback(name, error, decisions))


def batches(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """Return the items in lists of at most `most`, in their order."""
    return [items[start : start + most] for start in range(0, len(items), most)]


class Attempts:
    """The attempts at one decision.

    Args:
        seconds: how long to try; 0 for a single attempt.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = time.monotonic()
        self._once = True

    def limit(self, seconds: float) -> float:
        """Return how many of the seconds that an attempt may take are left.

        Raises:
            TypeError: the seconds of all attempts are not a number; then this attempt is the only one.
        """
        self._once = not self._seconds > 0
        return seconds if self._once else min(seconds, max(self._left(), _LEAST))

    def over(self) -> bool:
        """Return whether there is no time for another attempt."""
        return self._once or self._left() <= PAUSE

    def _left(self) -> float:
        return self._began + self._seconds - time.monotonic()
