"""Waiting for what a real process does."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

import pytest

PATIENCE: Final = 60.0
"""Seconds after which something will not happen any more; no test waits that long unless it fails."""

Value = TypeVar("Value")


def until(look: Callable[[], Value]) -> Value:
    """Return the first answer of `look` that is true; fail the test after `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not (seen := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"still {seen!r} after {PATIENCE:.0f} s")
        time.sleep(0.02)
    return seen
