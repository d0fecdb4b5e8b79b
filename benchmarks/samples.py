"""The data of a run: which sample is of what, and ratios of samples of the same round."""

import statistics
from typing import Any, Final, NamedTuple

SERVICE: Final = "this service"
EMPTY, EMPTY_UVLOOP = "empty call, asyncio", "empty call, uvloop"
NAIVE, NAIVE_UVLOOP = "naive, asyncio", "naive, uvloop"
FASTAPI, GO = "FastAPI", "the replaced route in Go"
BARE_QUERY, PROTOBUF = "bare query", "protobuf"

CALLERS: Final = (1, 4, 16, 32, 64)
BUSY: Final = 32
SHARES: Final = (30, 60, 80)
"""Per cent of the capacity of the slowest server that reads the row. In the open loop every server gets the same rate."""

Sample = dict[str, Any]
"""What one run of one server said, by name; the units are in the names."""


class Spread(NamedTuple):
    """The median of all rounds, and the bounds of the middle half of them."""

    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """Return `median (low to high)`."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def spread(values: list[float]) -> Spread:
    """Return the median and the middle half of these values."""
    if len(values) == 1:
        return Spread(*values * 3)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


class Samples:
    """The samples of a run."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._by_measure: dict[str, list[Sample]] = data["samples"]
        self.cores: int = data["machine"]["cores"]

    def generator_shares(self) -> list[float]:
        """Return the share of a core that the load generator used in each run."""
        return [each["generator"] for found in self._by_measure.values() for each in found if "generator" in each]

    def has(self, measure: str) -> bool:
        """Return whether a measure has samples."""
        return bool(self._by_measure.get(measure))

    def of(self, measure: str, **where: object) -> list[Sample]:
        """Return the samples of a measure that have these values, in the order of their rounds."""
        found = self._by_measure.get(measure, ())
        return [each for each in found if all(each.get(name) == value for name, value in where.items())]

    def values(self, measure: str, name: str, **where: object) -> list[float]:
        """Return one value of each of these samples."""
        return [each[name] for each in self.of(measure, **where)]

    def spread(self, measure: str, name: str, **where: object) -> Spread:
        """Return the same as median and middle half."""
        return spread(self.values(measure, name, **where))

    def ratio(self, measure: str, name: str, one: dict[str, object], other: dict[str, object]) -> Spread:
        """Return how often `other` goes into `one`, each pair of the same round."""
        pairs = zip(self.values(measure, name, **one), self.values(measure, name, **other), strict=True)
        return spread([first / second for first, second in pairs])
