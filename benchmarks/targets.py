"""What the service promises about its speed, and whether a run shows it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.samples import (
    BARE_QUERY,
    BUSY,
    EMPTY_UVLOOP,
    FASTAPI,
    NAIVE_UVLOOP,
    PROTOBUF,
    SERVICE,
    SHARES,
    Samples,
    Spread,
    spread,
)


class Result(NamedTuple):
    """A target, what was measured, and whether that meets it."""

    target: str
    measured: str
    met: bool


def results(samples: Samples) -> Iterator[Result]:
    """Yield the targets of the measures that ran. The median of the rounds decides."""
    for measure, judge in _JUDGES:
        if samples.has(measure):
            yield from judge(samples)


def _at_least(target: str, found: Spread, bound: float) -> Result:
    return Result(target, found.text(2), found.median >= bound)


def _at_most(target: str, found: Spread, bound: float) -> Result:
    return Result(target, found.text(2), found.median <= bound)


def _closed(samples: Samples) -> Iterator[Result]:
    def to(peer: str, name: str) -> Spread:
        return samples.ratio("closed", name, {"peer": SERVICE, "callers": BUSY}, {"peer": peer, "callers": BUSY})

    rate = f"`ResolveBillingMode`, {BUSY} callers: calls a second"
    yield _at_least(f"{rate} at least 0.5 × the empty call", to(EMPTY_UVLOOP, "calls_per_s"), 0.5)
    yield _at_least(f"{rate} at least 1.25 × the naive version", to(NAIVE_UVLOOP, "calls_per_s"), 1.25)
    yield _at_least(f"{rate} at least 1.3 × FastAPI", to(FASTAPI, "calls_per_s"), 1.3)
    yield _at_most("CPU a call at most 2.2 × the empty call", to(EMPTY_UVLOOP, "cpu_us"), 2.2)
    for peer, called in ((NAIVE_UVLOOP, "the naive version's"), (FASTAPI, "FastAPI's")):
        yield _at_most(f"p99 with {BUSY} callers at most {called}", to(peer, "p99_ms"), 1.0)
    yield from _one_caller(samples)


def _one_caller(samples: Samples) -> Iterator[Result]:
    one = samples.values("closed", "p50_ms", peer=SERVICE, callers=1)
    empty = samples.values("closed", "p50_ms", peer=EMPTY_UVLOOP, callers=1)
    query = samples.values("closed", "p50_ms", peer=BARE_QUERY)
    bounds = spread([call + 1.5 * bare for call, bare in zip(empty, query, strict=True)])
    found = spread(one)
    yield Result(
        "median of one caller at most the empty call's + 1.5 × the bare query's",
        f"{found.text(2)} ms; bound {bounds.text(2)} ms",
        found.median <= bounds.median,
    )
    yield Result("median of one caller under 0.5 ms", f"{found.text(2)} ms", found.median < 0.5)


def _open(samples: Samples) -> Iterator[Result]:
    for share in SHARES:
        for peer, called in ((NAIVE_UVLOOP, "the naive version's"), (FASTAPI, "FastAPI's")):
            found = samples.ratio("open", "p99_ms", {"peer": SERVICE, "share": share}, {"peer": peer, "share": share})
            yield _at_most(f"p99 at the same rate ({share} % of the slowest's capacity) at most {called}", found, 1.0)


def _batch(samples: Samples) -> Iterator[Result]:
    found = samples.spread("batch", "workspaces_per_s", peer=SERVICE)
    floor = samples.spread("batch", "workspaces_per_s", peer=PROTOBUF).median
    built = samples.spread("batch", "built_per_s", peer=PROTOBUF).median
    yield Result(
        "`BatchResolveBillingModes` of 1,000: at least 150,000 workspaces a second",
        f"{found.text(0)}; protobuf alone: {floor:,.0f} to serialise and parse the answer, {built:,.0f} to build and"
        " serialise it",
        found.median >= 150_000,
    )


def _validate(samples: Samples) -> Iterator[Result]:
    found = samples.ratio("validate", "calls_per_s", {"peer": SERVICE}, {"peer": EMPTY_UVLOOP})
    yield _at_least("`ValidateSecretWrite` without a database call at least 0.7 × the empty call", found, 0.7)


def _down(samples: Samples) -> Iterator[Result]:
    found = samples.ratio("down", "calls_per_s", {"peer": SERVICE}, {"peer": EMPTY_UVLOOP})
    yield _at_least("while the database is known to be down at least 0.6 × the empty call", found, 0.6)


def _workers(samples: Samples) -> Iterator[Result]:
    rate = samples.ratio("workers", "calls_per_s", {"workers": 2}, {"workers": 1})
    target = "two workers on two cores at least 1.7 × one"
    if samples.cores > 2:  # two for the workers, and one for the rest
        yield _at_least(target, rate, 1.7)
        return
    # Generator and database need a core of their own, which is missing. What the workers could do if they had both of
    # theirs follows from the processor time of a call.
    cost = samples.ratio("workers", "cpu_us", {"workers": 1}, {"workers": 2})
    derived = Spread(*(2 * value for value in cost))
    measured = (
        f"{derived.text(2)} by the processor time of a call; calls a second {rate.text(2)}, with the generator and the"
        " database on the same two cores"
    )
    yield Result(target, measured, derived.median >= 1.7)


def _idle(samples: Samples) -> Iterator[Result]:
    (found,) = samples.values("idle", "megabytes")
    yield Result("1,000 idle connections under 50 MB", f"{found:.0f} MB", found < 50)


def _neighbours(samples: Samples) -> Iterator[Result]:
    bad, good = (
        samples.ratio("neighbours", "p99_ms", {"neighbours": manners}, {"neighbours": "none"})
        for manners in ("bad", "good")
    )
    yield Result(
        "p99 of healthy callers beside bad ones at most 1.2 × that without",
        f"{bad.text(2)}; beside as many good calls instead {good.text(2)}",
        bad.median <= 1.2,
    )


def _many_rows(samples: Samples) -> Iterator[Result]:
    rows = sorted({int(each["rows"]) for each in samples.of("many_rows")})
    found = samples.ratio("many_rows", "calls_per_s", {"rows": rows[-1]}, {"rows": rows[0]})
    seconds = samples.of("many_rows", rows=rows[-1])[0]["filled_in_s"]
    measured = f"{found.text(2)}; filling the table took {seconds} s"
    yield Result("10 million rows at least 0.9 × 10 thousand", measured, found.median >= 0.9)


_JUDGES: tuple[tuple[str, Callable[[Samples], Iterator[Result]]], ...] = (
    ("closed", _closed),
    ("open", _open),
    ("batch", _batch),
    ("validate", _validate),
    ("workers", _workers),
    ("many_rows", _many_rows),
    ("idle", _idle),
    ("down", _down),
    ("neighbours", _neighbours),
)
