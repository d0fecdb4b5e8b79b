"""Record each new org default in the database, once for all its servers, in the background."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from billing_grpc.errors import StorageError
from billing_grpc.resolver import recognise_org_default
from billing_grpc.storage.repository import Repository

log = structlog.stdlib.get_logger(__name__)

_LOOK_EVERY: Final = 1.0
_RETRY_AFTER: Final = 5.0
_NOTHING: Final = object()


async def record_org_defaults(
    repository: Repository, org_default: Callable[[], str | None], *, server: str, origin: str, budget: float
) -> None:
    """Record the org default when this server first uses it, and each change of it. Never returns.

    The server serves without it: a default that cannot be recorded is tried again, and the log says so once.

    Args:
        repository: where to record it.
        org_default: returns the organisation's default as it is published now.
        server: the name of this server.
        origin: where the default comes from: `file` or `environment`.
        budget: seconds of storage that one try may use.
    """
    recorded: object = _NOTHING
    failed = False
    while True:
        mode = recognise_org_default(org_default())
        if recorded is mode:
            await asyncio.sleep(_LOOK_EVERY)
            continue
        try:
            changed = await repository.record_org_default(mode, server=server, origin=origin, budget=budget)
        except StorageError as error:
            if not failed:
                log.warning("org default not recorded, trying again", reason=error.reason, remedy=error.message)
            failed = True
            await asyncio.sleep(_RETRY_AFTER)
            continue
        recorded, failed = mode, False
        if changed:
            log.info("org default recorded", org_default=None if mode is None else mode.value, origin=origin)
