"""What the service counts, under the names that dashboards use."""

from prometheus_client import CollectorRegistry, Counter

from billing_grpc.model import Resolution, SecretVerdict


class Metrics:
    """The counters of one server.

    Attributes:
        registry: where they are registered; what the metrics port exposes.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._resolutions = Counter(
            "billing_grpc_resolutions",
            "Resolutions answered, by resolved mode and the rule that decided.",
            ["mode", "source"],
            registry=self.registry,
        )
        self._degraded = Counter(
            "billing_grpc_degraded_resolutions",
            "Resolutions closed because the override could not be read, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._blocked_writes = Counter(
            "billing_grpc_blocked_secret_writes",
            "Secret keys that were refused, by verdict.",
            ["verdict"],
            registry=self.registry,
        )

    def count_resolution(self, resolution: Resolution) -> None:
        """Counts an answered resolution, and that it was degraded when it was."""
        self._resolutions.labels(mode=resolution.mode.value, source=resolution.source.value).inc()
        if resolution.error is not None:
            self._degraded.labels(reason=resolution.error.reason).inc()

    def count_blocked_write(self, verdict: SecretVerdict) -> None:
        """Counts one refused key."""
        self._blocked_writes.labels(verdict=verdict.value).inc()
