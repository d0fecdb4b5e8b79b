"""What is exposed: valid names, no more series than there are answers, and the sum of several processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from billing_grpc.errors import STORAGE_ERRORS
from billing_grpc.server.auth import roles
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.multiprocess import multiprocess_registry

TYPES: Final = {
    "billing_grpc_resolutions": "counter",
    "billing_grpc_degraded_resolutions": "counter",
    "billing_grpc_corrupt_overrides": "counter",
    "billing_grpc_blocked_secret_writes": "counter",
    "billing_grpc_suspect_keys": "counter",
    "billing_grpc_calls": "counter",
    "billing_grpc_call_seconds": "histogram",
    "billing_grpc_calls_in_flight": "gauge",
    "billing_grpc_storage_seconds": "histogram",
    "billing_grpc_database_up": "gauge",
    "billing_grpc_pool_size": "gauge",
    "billing_grpc_tasks": "gauge",
    "billing_grpc_pool_idle": "gauge",
    "billing_grpc_pool_in_use": "gauge",
    "billing_grpc_pool_waiting": "gauge",
    "billing_grpc_trace_export_failures": "counter",
    "billing_grpc_log_lines_dropped": "counter",
    "billing_grpc_build_info": "gauge",
    "billing_grpc_catalogue_info": "gauge",
}


@dataclass(frozen=True)
class Pool:
    size: int = 8
    idle: int = 5
    in_use: int = 3
    waiting: int = 2


def families(registry: CollectorRegistry) -> dict[str, Metric]:
    """What a scrape would see, parsed as Prometheus parses it."""
    return {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}


def samples(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """The values of a series by its labels' values, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in families(registry).values()
        for sample in family.samples
        if sample.name == name
    }


def test_names_types_and_texts_are_those_that_dashboards_rely_on() -> None:
    found = {name: family for name, family in families(Metrics().registry).items() if name in TYPES}

    assert {name: family.type for name, family in found.items()} == TYPES
    assert all(family.documentation.endswith(".") for family in found.values())


def test_a_process_tells_about_itself() -> None:
    registry = Metrics("1.2.3", "1.83.2").registry

    assert {"process_resident_memory_bytes", "process_open_fds", "python_info", "python_gc_collections"} <= set(
        families(registry)
    )
    python = ".".join(map(str, sys.version_info[:3]))
    labels = {"version": "1.2.3", "python": python, "grpc": "1.83.2"}
    assert registry.get_sample_value("billing_grpc_build_info", labels) == 1


def test_known_series_begin_at_zero_so_that_their_first_increment_is_seen() -> None:
    registry = Metrics().registry

    assert samples(registry, "billing_grpc_degraded_resolutions_total") == {(reason,): 0 for reason in STORAGE_ERRORS}
    assert len(samples(registry, "billing_grpc_resolutions_total")) == 9
    calls = samples(registry, "billing_grpc_calls_total")
    assert {method for _, method in calls} == {path.rpartition(".")[2] for path in roles.MAY_CALL}
    assert set(calls.values()) == {0}


def test_a_method_that_is_not_ours_is_never_a_label() -> None:
    metrics = Metrics()
    for path in ("/x.Y/Z", "", "\n", "/molecule.billing.v1.BillingModeService/Nothing", "other", "ResolveBillingMode"):
        metrics.counter_of_calls(path)("UNIMPLEMENTED", 0.001)

    assert samples(metrics.registry, "billing_grpc_calls_total")["UNIMPLEMENTED", "other"] == 6
    assert samples(metrics.registry, "billing_grpc_call_seconds_count") == {("other",): 6}


def test_the_buckets_tell_one_millisecond_from_two_and_in_budget_from_late() -> None:
    metrics = Metrics()
    metrics.counter_of_calls("/molecule.billing.v1.BillingModeService/ResolveBillingMode")("OK", 0.0008)
    buckets = {float(le) for le, _ in samples(metrics.registry, "billing_grpc_call_seconds_bucket")}

    assert {0.0005, 0.001, 0.002, 1.0, 1.25, float("inf")} <= buckets


def test_gauges_show_what_the_pool_and_the_database_say_at_the_last_refresh() -> None:
    metrics, up = Metrics(), [True]
    metrics.gauges.refresh()  # nobody to ask
    metrics.gauges.observe_pool(Pool)
    metrics.gauges.observe_database(lambda: up[0])
    metrics.gauges.observe_tasks(lambda: 7)
    metrics.gauges.refresh()

    assert metrics.registry.get_sample_value("billing_grpc_tasks") == 7
    names = ("size", "idle", "in_use", "waiting")
    assert [metrics.registry.get_sample_value(f"billing_grpc_pool_{name}") for name in names] == [8, 5, 3, 2]
    assert metrics.registry.get_sample_value("billing_grpc_database_up") == 1
    up[0] = False
    metrics.gauges.refresh()
    assert metrics.registry.get_sample_value("billing_grpc_database_up") == 0


WORKER: Final = """
import sys
from types import SimpleNamespace
from billing_grpc.model import Catalogue
from billing_grpc.server.telemetry.metrics import Metrics

metrics = Metrics("1.2.3", "1.83.2")
metrics.show_catalogue(Catalogue("core", "2026-11-26", "0123456789ab"))
up = sys.argv[1] == "up"
metrics.gauges.observe_pool(lambda: SimpleNamespace(size=8, idle=5, in_use=3, waiting=1))
metrics.gauges.observe_database(lambda: up)
metrics.gauges.observe_tasks(lambda: 3)
for _ in range(2):
    metrics.counter_of_calls("/molecule.billing.v1.BillingModeService/ResolveBillingMode")("OK", 0.0008)
metrics.gauges.call_begun()
metrics.gauges.refresh()
print("ready", flush=True)
sys.stdin.readline()
metrics.gauges.call_ended()
"""


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that write into one directory until their standard input ends."""
    variables = {"PATH": os.environ["PATH"], "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, state], env=variables, stdin=pipe, stdout=pipe, text=True
                )
            )
            for state in ("up", "down")
        ]
        for worker in started:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        yield started


def test_several_processes_are_exposed_as_one(workers: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    registry = multiprocess_registry(tmp_path)

    found = families(registry)
    assert {name: family.type for name, family in found.items() if family.samples} == {
        name: kind for name, kind in TYPES.items() if name != "billing_grpc_storage_seconds"
    }
    resolve = "BillingModeService/ResolveBillingMode"
    assert samples(registry, "billing_grpc_calls_total")["OK", resolve] == 4
    assert samples(registry, "billing_grpc_call_seconds_count") == {(resolve,): 4}
    assert samples(registry, "billing_grpc_calls_in_flight") == {(): 2}
    assert samples(registry, "billing_grpc_pool_size") == {(): 16}
    assert samples(registry, "billing_grpc_tasks") == {(): 6}
    assert samples(registry, "billing_grpc_database_up") == {(): 0}, "one of them cannot reach it"
    assert list(samples(registry, "billing_grpc_build_info").values()) == [1]

    for worker in workers:
        worker.communicate(timeout=30)
    assert [worker.returncode for worker in workers] == [0, 0]
    assert samples(registry, "billing_grpc_calls_total")["OK", resolve] == 4, "what was counted stays"


def test_several_processes_need_their_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a directory"):
        multiprocess_registry(tmp_path / "missing")
