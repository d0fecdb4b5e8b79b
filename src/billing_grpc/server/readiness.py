"""Looks, again and again, whether administration works: the database is there and holds what administration needs."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from billing_grpc.errors import StorageError
from billing_grpc.storage.repository import Repository

log = structlog.stdlib.get_logger(__name__)

EVERY: Final = 1.0
"""Seconds between two looks, and the longest that one may take."""


async def watch_administration(repository: Repository, report: Callable[[bool], None], *, budget: float) -> None:
    """Reports after every look whether administration works, and logs when that changes. Never comes back.

    Args:
        repository: what is looked at, by the way that calls go.
        report: is told after every look.
        budget: seconds that a look may take; no more than a second of them is used.
    """
    before: str | None = None
    while True:
        try:
            await repository.check_administration(budget=min(budget, EVERY))
        except StorageError as error:
            now = error.reason
            if now != before:
                log.warning("administration does not work", reason=error.reason, remedy=error.message)
        else:
            now = ""
            if now != before:
                log.info("administration works")
        report(not now)
        before = now
        await asyncio.sleep(EVERY)
