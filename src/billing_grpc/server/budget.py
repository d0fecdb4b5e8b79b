"""The time that a call may spend in storage."""

from typing import Final

from billing_grpc.errors import DatabaseTimeout
from billing_grpc.server.call import RequestContext

ANSWER_MARGIN: Final = 0.05
"""Seconds before the caller's deadline that storage may not use, so that the answer arrives in time."""


class StorageBudget:
    """Gives each call its share of time.

    Args:
        longest: the most that any call may spend, in seconds.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest

    def of(self, call: RequestContext) -> float:
        """Return the seconds of storage that this call may use.

        Raises:
            DatabaseTimeout: no time is left; the database is not asked.
        """
        left = call.time_remaining()
        budget = self._longest if left is None else min(left - ANSWER_MARGIN, self._longest)
        if budget <= 0:
            raise DatabaseTimeout
        return budget
