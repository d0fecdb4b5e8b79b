"""Waiting for what a real process does."""

import asyncio
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


async def until_true(holds: Callable[[], bool], seconds: float) -> None:
    """Return when `holds` is true, and let the event loop run meanwhile; fail the test after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)
