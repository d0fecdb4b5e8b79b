"""A `Repository` with metrics and spans: the duration and outcome of each operation, in the caller's trace."""

import inspect
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Final, cast

from billing_grpc.errors import StorageError
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.spans import Tracing
from billing_grpc.storage.repository import Repository

_WORKSPACES: Final = "workspaces"
_CHANGES: Final = "workspace_billing_mode_changes"

_OPERATIONS: Final = [name for name, each in vars(Repository).items() if inspect.iscoroutinefunction(each)]
_STATEMENTS: Final = {"save_override": "UPDATE"}
"""The kind of SQL statement of an operation in a span; SELECT of any other."""
_TABLES: Final = dict.fromkeys(("list_changes", "record_org_default", "check_administration"), _CHANGES)
"""The table of an operation in a span; `workspaces` of any other."""


def observed(repository: Repository, metrics: Metrics, tracing: Tracing | None = None) -> Repository:
    """Return a repository that passes on the answers and errors of `repository` unchanged and observes each operation.

    Args:
        repository: the one to observe.
        metrics: where operations are counted and timed.
        tracing: makes their spans; `None` for no spans.
    """
    operations = {name: _observing(name, getattr(repository, name), metrics, tracing) for name in _OPERATIONS}
    return cast("Repository", SimpleNamespace(**operations))


def _observing(
    operation: str, work: Callable[..., Awaitable[Any]], metrics: Metrics, tracing: Tracing | None
) -> Callable[..., Awaitable[Any]]:
    statement, table = _STATEMENTS.get(operation, "SELECT"), _TABLES.get(operation, _WORKSPACES)

    async def observing(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            with nullcontext() if tracing is None else tracing.storage_span(operation, statement, table):
                answer = await work(*args, **kwargs)
            outcome = "ok"
        except StorageError as error:
            outcome = error.reason
            raise
        finally:
            metrics.count_storage(operation, outcome, time.perf_counter() - started)
        return answer

    return observing
