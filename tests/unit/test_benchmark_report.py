"""What the benchmark says of its data: ratios within a round, and whether a target is met."""

from typing import Any

import pytest

from benchmarks.report import figures, replaced
from benchmarks.samples import BARE_QUERY, BUSY, EMPTY_UVLOOP, FASTAPI, NAIVE_UVLOOP, SERVICE, Samples, Spread
from benchmarks.targets import results


def data(cores: int = 2, **samples: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {
        "processor": "P",
        "cores": cores,
        "pinned": True,
        "system": "S",
        "python": "3",
        "python_loop_us": 9,
        "libraries": {},
    }
    return {
        "machine": {**machine, "load_before": 0.0},
        "plan": {"rounds": 2, "seconds": 1.0},
        "samples": samples,
    }


def closed(service: float, empty: float, naive: float, fastapi: float) -> dict[str, Any]:
    """A run in which only the calls a second differ, and what follows from them."""
    rates = {SERVICE: service, EMPTY_UVLOOP: empty, NAIVE_UVLOOP: naive, FASTAPI: fastapi}
    calls = [
        {
            "peer": peer,
            "callers": callers,
            "calls_per_s": rate,
            "cpu_us": 1e6 / rate,
            "p50_ms": 1e3 / rate,
            "p99_ms": 2e3 / rate,
        }
        for peer, rate in rates.items()
        for callers in (1, BUSY)
    ]
    return data(closed=[{"peer": BARE_QUERY, "p50_ms": 0.1}, *calls])


def unmet(found: dict[str, Any]) -> list[str]:
    return [each.target for each in results(Samples(found)) if not each.met]


def test_a_service_that_is_fast_enough_meets_every_target() -> None:
    assert unmet(closed(service=4_000, empty=7_600, naive=3_100, fastapi=3_000)) == []


@pytest.mark.parametrize(
    ("slow", "says"),
    [
        ({"empty": 8_100}, "the empty call"),
        ({"naive": 3_250}, "the naive version"),
        ({"fastapi": 3_150}, "FastAPI"),
    ],
)
def test_a_peer_that_is_too_fast_is_a_missed_target(slow: dict[str, float], says: str) -> None:
    missed = unmet(closed(**{"service": 4_000, "empty": 7_600, "naive": 3_100, "fastapi": 3_000, **slow}))

    assert [target for target in missed if "calls a second" in target and says in target]


def test_a_ratio_compares_runs_of_one_round() -> None:
    rounds = [(100.0, 200.0), (10.0, 20.0), (300.0, 500.0)]
    rows = [
        {"peer": peer, "calls_per_s": rate}
        for pair in rounds
        for peer, rate in zip((SERVICE, EMPTY_UVLOOP), pair, strict=True)
    ]

    found = Samples(data(validate=rows)).ratio("validate", "calls_per_s", {"peer": SERVICE}, {"peer": EMPTY_UVLOOP})

    assert found == Spread(median=0.5, low=0.5, high=0.55)


@pytest.mark.parametrize(("cores", "met"), [(2, True), (4, False)])
def test_two_workers_count_by_calls_where_the_generator_has_its_own_core(cores: int, met: bool) -> None:
    rows = [
        {"workers": 1, "calls_per_s": 1000.0, "cpu_us": 1000.0},
        {"workers": 2, "calls_per_s": 1600.0, "cpu_us": 1100.0},
    ]

    assert [each.met for each in results(Samples(data(cores, workers=rows)))] == [met]


def test_the_tables_replace_those_between_the_markers_and_nothing_else() -> None:
    page = "before\n<!-- figures: written by make benchmark -->\nold\n<!-- end of figures -->\nafter\n"
    found = data(idle=[{"megabytes": 49.0}])

    written = replaced(page, found)

    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert figures(found) in written
    assert "old" not in written
    assert replaced(written, found) == written
