"""How the budget of a call is divided, so that its answer comes in time whatever the database does."""

from typing import Final

SUSPICIOUS_AFTER: Final = 0.15
"""Seconds without an answer after which the breaker starts probing. A read takes a hundredth of that."""

SEVER_AT: Final = 0.9
"""The part of a budget after which the connection is severed. The rest is for what follows from it."""

_STATEMENT_AT: Final = 0.85
"""The part of the longest budget after which the server ends a statement itself. The connection survives that."""


def server_timeout(budget: float, used: float = 0) -> str:
    """Return the time after which the server is to end a statement, as Postgres takes it.

    Args:
        budget: of the call, in seconds.
        used: seconds of the budget that have passed, for example while waiting for a connection.
    """
    return f"{max(1, int((budget * _STATEMENT_AT - used) * 1000))}ms"
