"""The metrics of the service, under the names that dashboards use: what is counted and timed."""

import platform
from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    values,
)

from billing_grpc.errors import STORAGE_ERRORS
from billing_grpc.model import BillingMode, BillingModeSource, Catalogue, Resolution, SecretVerdict
from billing_grpc.resolver import is_corrupt
from billing_grpc.server.auth import roles
from billing_grpc.server.telemetry.gauges import Gauges

OTHER: Final = "other"
"""The label of every unknown method: text from a caller must not become a time series."""

_METHODS: Final = {path: path.rpartition(".")[2] for path in roles.OPEN | roles.MAY_CALL.keys()}

# The statuses that a method of the service can end with. Counters that begin at zero show their first increment to `rate()`.
_CODES: Final = (
    *("OK", "CANCELLED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "NOT_FOUND", "ABORTED", "UNAUTHENTICATED"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"),
)

# Close together where a healthy call ends (a millisecond) and where a call must have ended (a second of storage).
_CALL_BUCKETS: Final = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    1.25,
    2.5,
    5.0,
)
_STORAGE_BUCKETS: Final = (0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 2.5)


class Metrics:
    """The counters, gauges and histograms of one server.

    In multiprocess mode, which prometheus_client enters when PROMETHEUS_MULTIPROC_DIR is set before its import, every
    process writes into that directory, and `multiprocess_registry` is what to expose; there are no metrics of a single
    process then.

    Attributes:
        registry: where the metrics are registered; the metrics port of a single process exposes it.
        gauges: what holds at this moment.
    """

    def __init__(self, version: str = "", grpc_version: str = "") -> None:
        """Create all known series at zero; the versions become labels of `billing_grpc_build_info`."""
        self.registry = CollectorRegistry()
        self.gauges = Gauges(self.registry)
        self._resolutions = self._counter(
            "resolutions",
            "Resolutions answered, by resolved mode and the rule that decided.",
            mode=BillingMode,
            source=BillingModeSource,
        )
        # To find a series by its labels takes longer than to count.
        self._resolution = cache(self._resolutions.labels)
        self._degraded = self._counter(
            "degraded_resolutions",
            "Resolutions closed because the override could not be read, by reason.",
            reason=STORAGE_ERRORS,
        )
        self._corrupt_overrides = self._counter(
            "corrupt_overrides", "Resolutions closed because the stored override is a text that names no mode."
        )
        self._blocked_writes = self._counter(
            "blocked_secret_writes",
            "Secret keys that were refused, by verdict.",
            verdict=[verdict for verdict in SecretVerdict if verdict is not SecretVerdict.ALLOWED],
        )
        self._suspects = self._counter(
            "suspect_keys", "Names in environments that look like a vendor's and are in no set, each counted once."
        )
        self._calls = self._counter(
            "calls",
            "Calls that have ended, by method and status code.",
            method=[_METHODS[path] for path in roles.MAY_CALL],
            code=_CODES,
        )
        self._call_seconds = Histogram(
            "billing_grpc_call_seconds",
            "Seconds from a call's handler being found to its answer; streams of health and reflection are left out.",
            ["method"],
            buckets=_CALL_BUCKETS,
            registry=self.registry,
        )
        self._storage_seconds = Histogram(
            "billing_grpc_storage_seconds",
            "Seconds a storage operation took, waiting for a connection included, by how it ended: ok, or a reason.",
            ["operation", "outcome"],
            buckets=_STORAGE_BUCKETS,
            registry=self.registry,
        )
        self._storage = cache(self._storage_seconds.labels)
        self._export_failures = self._counter("trace_export_failures", "Batches of spans that no collector took.")
        self._dropped_lines = self._counter("log_lines_dropped", "Log lines that could not be written.")
        labels = {"version": version, "python": platform.python_version(), "grpc": grpc_version}
        Gauge(
            "billing_grpc_build_info",
            "1; what is running stands in the labels.",
            list(labels),
            multiprocess_mode="max",
            registry=self.registry,
        ).labels(**labels).set(1)
        self._catalogue = Gauge(
            "billing_grpc_catalogue_info",
            "1; the list of vendor names that judges stands in the labels.",
            ["set", "version", "digest"],
            multiprocess_mode="max",
            registry=self.registry,
        )
        if values.ValueClass is values.MutexValue:
            # Custom collectors do not work with several processes.
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)

    def count_resolution(self, resolution: Resolution, workspaces: int = 1) -> None:
        """Count an answered resolution of so many workspaces, and whether it was degraded or its override corrupt."""
        self._resolution(resolution.mode, resolution.source).inc(workspaces)
        if is_corrupt(resolution):
            self._corrupt_overrides.inc(workspaces)
        if resolution.error is not None:
            self._degraded.labels(reason=resolution.error.reason).inc(workspaces)

    def count_suspect(self) -> None:
        """Count a name that looks like a vendor's and is in no set."""
        self._suspects.inc()

    def show_catalogue(self, catalogue: Catalogue) -> None:
        """Show which list of vendor names judges, as the labels of `billing_grpc_catalogue_info`."""
        self._catalogue.labels(set=catalogue.set, version=catalogue.version, digest=catalogue.digest).set(1)

    def count_blocked_write(self, verdict: SecretVerdict) -> None:
        """Count one refused key."""
        self._blocked_writes.labels(verdict=verdict.value).inc()

    def counter_of_calls(self, path: str, *, timed: bool = True) -> Callable[[str, float], None]:
        """Return a function that counts a call that has ended, given the name of its status and its seconds.

        Args:
            path: as in `/package.Service/Method`; an unknown method counts as "other".
            timed: False for a stream, whose duration says nothing about the server.
        """
        method = _METHODS.get(path, OTHER)
        calls = cache(lambda code: self._calls.labels(method, code))
        # Made with the first call: a method without calls has no durations to show.
        seconds = cache(lambda: self._call_seconds.labels(method))

        def count(code: str, duration: float) -> None:
            calls(code).inc()
            if timed:
                seconds().observe(duration)

        return count

    def count_storage(self, operation: str, outcome: str, seconds: float) -> None:
        """Count a storage operation by its name and its outcome: `ok`, or a reason of the contract."""
        self._storage(operation, outcome).observe(seconds)

    def count_export_failure(self) -> None:
        """Count a batch of spans that was lost."""
        self._export_failures.inc()

    def count_dropped_line(self) -> None:
        """Count a log line that could not be written."""
        self._dropped_lines.inc()

    def _counter(self, name: str, text: str, **labels: Iterable[str]) -> Counter:
        counter = Counter(f"billing_grpc_{name}", text, list(labels), registry=self.registry)
        if labels:
            for combination in product(*labels.values()):
                counter.labels(*combination)
        return counter
