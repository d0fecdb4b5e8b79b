"""The metrics of several processes, exposed as those of one."""

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead


def multiprocess_registry(directory: Path) -> CollectorRegistry:
    """Return a registry that exposes several processes, which share a directory, as one.

    Call `forget_process` for each process that has ended: that removes its gauges and keeps its counters.

    Raises:
        ValueError: the directory does not exist.
    """
    registry = CollectorRegistry()
    collector: Any = MultiProcessCollector
    collector(registry, str(directory))  # registers itself
    return registry


def forget_process(pid: int, directory: Path) -> None:
    """Remove the gauges of a process that wrote into this directory; its counters stay."""
    forget: Any = mark_process_dead
    forget(pid, str(directory))
