"""The health service (grpc.health.v1), and the check that tells it whether administration works."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2

from billing_grpc.errors import StorageError
from billing_grpc.server.call import RequestContext
from billing_grpc.server.calls.hooks import RefusedError
from billing_grpc.storage.repository import Repository

log = structlog.stdlib.get_logger(__name__)

SERVICE_NAME: Final[str] = health.SERVICE_NAME
CHECK_INTERVAL: Final = 1.0
"""Seconds between two checks of administration, and the longest that one may take."""
_Response: Final[Any] = health_pb2.HealthCheckResponse


class HealthServicer:
    """Answer with the status of each name that was set.

    The library's servicer does not fit: it holds a lock while it writes to a watcher, so a client that reads nothing blocks
    every other watcher and the server's stop.
    """

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._draining = False
        self._over = False

    def set(self, name: str, *, serving: bool) -> None:
        """Set the status of a name; ignored after `drain`."""
        if not self._draining:
            self._set({name: serving})

    def drain(self) -> None:
        """Set NOT_SERVING for every name, for good: the server is about to stop."""
        self._draining = True
        self._set(dict.fromkeys(self._serving, False))

    def end(self) -> None:
        """End the watchers' streams after their last status is written; open streams would delay the stop."""
        self._over = True
        self._set({})

    def _set(self, serving: dict[str, bool]) -> None:
        self._serving.update(serving)
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, call: RequestContext) -> Any:
        """Return the status of a name; NOT_FOUND if it was never set."""
        del call
        if request.service not in self._serving:
            raise RefusedError(grpc.StatusCode.NOT_FOUND, "no such service; the empty name stands for the server")
        return _Response(status=self._status(request.service))

    async def Watch(self, request: Any, call: RequestContext) -> None:
        """Write the status of a name now and after each change; SERVICE_UNKNOWN until it is set."""
        written = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != written:
                await call.rpc.write(_Response(status=status))
                written = status
                continue  # it may have changed meanwhile
            if self._over:
                return
            await changed.wait()

    def _status(self, name: str) -> int:
        if name not in self._serving:
            return int(_Response.SERVICE_UNKNOWN)
        return int(_Response.SERVING if self._serving[name] else _Response.NOT_SERVING)


async def watch_administration(repository: Repository, report: Callable[[bool], None], *, budget: float) -> None:
    """Check every second whether administration works; log each change. Never returns.

    Args:
        repository: the repository to check, the same one that calls use.
        report: called with the result of every check.
        budget: seconds that a check may take, at most `CHECK_INTERVAL`.
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
