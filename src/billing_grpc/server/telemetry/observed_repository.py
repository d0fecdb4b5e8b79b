"""A `Repository` with metrics and spans: the duration and outcome of each operation, in the caller's trace."""

import inspect
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, Final, TypeAlias, cast

from billing_grpc.errors import StorageError
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.spans import Tracing
from billing_grpc.storage.repository import Repository

Work: TypeAlias = Callable[..., Awaitable[Any]]

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
    operations = {name: getattr(repository, name) for name in _OPERATIONS}
    if tracing is not None:
        operations = {name: _in_span(name, work, tracing) for name, work in operations.items()}
    operations = {name: _counted(name, work, metrics) for name, work in operations.items()}
    return cast("Repository", SimpleNamespace(**operations))


def _in_span(operation: str, work: Work, tracing: Tracing) -> Work:
    statement, table = _STATEMENTS.get(operation, "SELECT"), _TABLES.get(operation, _WORKSPACES)

    async def in_span(*args: Any, **kwargs: Any) -> Any:
        with tracing.storage_span(operation, statement, table):
            return await work(*args, **kwargs)

    return in_span


def _counted(operation: str, work: Work, metrics: Metrics) -> Work:
    async def counted(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            answer = await work(*args, **kwargs)
            outcome = "ok"
        except StorageError as error:
            outcome = error.reason
            raise
        finally:
            metrics.count_storage(operation, outcome, time.perf_counter() - started)
        return answer

    return counted
