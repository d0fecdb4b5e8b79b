"""The health service: the status of each name, told to who asks and to who watches (grpc.health.v1)."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from billing_grpc.errors import StorageError
from billing_grpc.storage.repository import Repository

log = structlog.stdlib.get_logger(__name__)

SERVICE_NAME: Final[str] = health.SERVICE_NAME
CHECK_INTERVAL: Final = 1.0
"""Seconds between two looks, and the longest that one may take."""
_Response: Final[Any] = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library ships no types
    """Answers for the names it was told of.

    Not the library's: that one holds a lock while it writes to a watcher, so a client that takes nothing kept every other
    watcher from hearing, and the server from ever stopping.
    """

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._draining = False
        self._over = False

    def set(self, name: str, *, serving: bool) -> None:
        """Makes a name known, or changes its status; nothing any more after `drain`."""
        if not self._draining:
            self._set({name: serving})

    def drain(self) -> None:
        """NOT_SERVING for every name and for good: the server is about to go."""
        self._draining = True
        self._set(dict.fromkeys(self._serving, False))

    def end(self) -> None:
        """Ends the streams of those who watch, once they were told the last status; otherwise they hold up a stop."""
        self._over = True
        self._set({})

    def _set(self, serving: dict[str, bool]) -> None:
        self._serving.update(serving)
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:
        """The status of a name, NOT_FOUND when it was never set."""
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service; the empty name stands for the server")
        return _Response(status=self._status(request.service))

    async def Watch(self, request: Any, context: Any) -> None:
        """The status of a name now and whenever it has changed, SERVICE_UNKNOWN while it was never set."""
        told = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                await context.write(_Response(status=status))
            told = status
            if self._over:
                return
            await changed.wait()

    def _status(self, name: str) -> int:
        if name not in self._serving:
            return int(_Response.SERVICE_UNKNOWN)
        return int(_Response.SERVING if self._serving[name] else _Response.NOT_SERVING)


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
            await repository.check_administration(budget=min(budget, CHECK_INTERVAL))
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
        await asyncio.sleep(CHECK_INTERVAL)
