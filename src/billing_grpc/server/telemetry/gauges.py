"""The gauges of one server: its running calls, its event loop, its database and its connections at one moment."""

from collections.abc import Callable
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Gauge


class PoolStats(Protocol):
    """The state of a connection pool at one moment."""

    @property
    def size(self) -> int:
        """Return how many connections the pool should hold."""

    @property
    def idle(self) -> int:
        """Return how many connections exist and are not in use."""

    @property
    def in_use(self) -> int:
        """Return how many connections are in use."""

    @property
    def waiting(self) -> int:
        """Return how many calls wait for a connection."""


class Gauges:
    """What holds at this moment, as of the last `refresh`.

    Args:
        registry: where the gauges are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._pool: Callable[[], PoolStats] | None = None
        self._database: Callable[[], bool] | None = None
        self._calls_now = 0
        self._running: Callable[[], int] | None = None
        self._in_flight = self._gauge("calls_in_flight", "Calls in progress; health and reflection are left out.")
        self._tasks = self._gauge("tasks", "Tasks of the event loop; grows without end only where something leaks.")
        self._database_up = self._gauge("database_up", "1 while the database answers.", mode="livemin")
        self._pool_size = self._gauge("pool_size", "Database connections that are to be held.")
        self._pool_idle = self._gauge("pool_idle", "Database connections that are idle.")
        self._pool_in_use = self._gauge("pool_in_use", "Database connections that work.")
        self._pool_waiting = self._gauge("pool_waiting", "Calls that wait for a database connection.")

    def call_begun(self) -> None:
        """Count a call as in progress until `call_ended`."""
        self._calls_now += 1

    def call_ended(self) -> None:
        """Count a call as in progress no longer."""
        self._calls_now -= 1

    def observe_pool(self, stats: Callable[[], PoolStats]) -> None:
        """Set the source of the pool's state; called at every `refresh`."""
        self._pool = stats

    def observe_database(self, is_up: Callable[[], bool]) -> None:
        """Set the source of whether the database answers; called at every `refresh`."""
        self._database = is_up

    def observe_tasks(self, running: Callable[[], int]) -> None:
        """Set the source of the number of the event loop's tasks; called at every `refresh`."""
        self._running = running

    def refresh(self) -> None:
        """Set the gauges from their sources."""
        self._in_flight.set(self._calls_now)
        if self._running is not None:
            self._tasks.set(self._running())
        if self._database is not None:
            self._database_up.set(self._database())
        if self._pool is not None:
            stats = self._pool()
            self._pool_size.set(stats.size)
            self._pool_idle.set(stats.idle)
            self._pool_in_use.set(stats.in_use)
            self._pool_waiting.set(stats.waiting)

    def _gauge(self, name: str, text: str, *, mode: Literal["livesum", "livemin"] = "livesum") -> Gauge:
        return Gauge(f"billing_grpc_{name}", text, multiprocess_mode=mode, registry=self._registry)
