"""Count what the client's owner should know, where prometheus_client is installed: the client itself does not need it."""

from importlib import import_module
from typing import Final, Protocol


class Count(Protocol):
    """A counter with labels."""

    def __call__(self, amount: float = 1, /, **labels: str) -> None:
        """Add to the counter of these labels."""


def counter(name: str, meaning: str, labels: list[str]) -> Count:
    """Return a counter in prometheus_client's default registry, or one that counts nothing without that package."""
    try:
        made = import_module("prometheus_client").Counter(name, meaning, labels)
    except ModuleNotFoundError:
        return _ignore

    def count(amount: float = 1, /, **labels: str) -> None:
        made.labels(**labels).inc(amount)

    return count


def _ignore(amount: float = 1, /, **labels: str) -> None:
    """Count nothing."""


count_fallbacks: Final = counter(
    "billing_grpc_client_closed_answers",
    "Decisions that were closed because no answer could be had or used, by method and reason.",
    ["method", "reason"],
)
count_differences: Final = counter(
    "billing_grpc_client_catalogue_differences",
    "Answers of a server that blocks other vendor names than this client, by method.",
    ["method"],
)
