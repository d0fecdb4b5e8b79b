"""The tables of docs/performance.md, from the data of a run. Needs the standard library alone."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.samples import BUSY, CALLERS, SERVICE, SHARES, Sample, Samples
from benchmarks.targets import results

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"


def figures(data: dict[str, Any]) -> str:
    """Return the machine, the targets and the tables as Markdown."""
    samples = Samples(data)
    parts = [_machine(data, samples), _targets(samples)]
    if samples.has("closed"):
        parts += [_busy(samples), _by_callers(samples)]
    if samples.has("open"):
        parts.append(_open(samples))
    if samples.has("neighbours"):
        parts.append(_neighbours(samples))
    if samples.has("traces"):
        parts.append(_traces(samples))
    if samples.has("locks"):
        parts.append(_locks(samples))
    return "\n\n".join(parts)


def profile(data: dict[str, Any]) -> str:
    """Return where the service's time goes, as Markdown."""
    found = Samples(data).of("profile")
    if not found:
        return ""
    (sample,) = found
    if "problem" in sample:
        return f"py-spy could not look into the process: {sample['problem']}"
    rows = [
        (f"`{part}`" if part.startswith("billing_grpc") else part, f"{share:.0f}")
        for part, share in sample["parts"].items()
        if share >= 1
    ]
    threads = sample["threads"]
    return (
        f"Processor time: {threads['main']:.0f} % in the main thread, {threads['others']:.0f} % in others (the core of"
        f" gRPC, and the thread that writes the log). {sample['samples']:,} samples of the main thread, by the innermost"
        " part that they are in:\n\n" + _table(("part", "% of samples"), rows)
    )


def write(data: dict[str, Any]) -> None:
    """Put the tables into the page, between their markers."""
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), data), encoding="utf-8")


def replaced(page: str, data: dict[str, Any]) -> str:
    """Return the page with the tables of this data."""
    for name, text in (("figures", figures(data)), ("profile", profile(data))):
        begin, end = f"<!-- {name}: written by make benchmark -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        page = pattern.sub(f"{begin}\n\n{text}\n\n{end}".replace("\\", r"\\"), page)
    return page


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _machine(data: dict[str, Any], samples: Samples) -> str:
    machine, plan = data["machine"], data["plan"]
    cores = "the server on one, everything else on another" if machine["pinned"] else "not pinned, so ratios say less"
    libraries = ", ".join(f"{name} {number}" for name, number in machine["libraries"].items())
    every = [each for measure in data["samples"].values() for each in measure]
    calls = sum(each.get("calls", 0) for each in every)
    return (
        f"{machine['processor']}, {machine['cores']} cores ({cores}), {machine['system']}, Python {machine['python']};"
        f" {libraries}. Load of the machine before the run:"
        f" {machine['load_before']}. {plan['rounds']} rounds; {calls:,} calls, of which"
        f" {sum(each.get('wrong', 0) for each in every)} had a wrong status or answer. The load generator used at most"
        f" {max(samples.generator_shares(), default=0):.0%} of its core."
    )


def _targets(samples: Samples) -> str:
    rows = [(each.target, each.measured, "yes" if each.met else "**no**") for each in results(samples)]
    return _table(("target", "measured: median (middle half)", "met?"), rows)


def _peers(samples: Samples, measure: str) -> list[str]:
    return list(dict.fromkeys(each["peer"] for each in samples.of(measure) if "calls_per_s" in each))


def _busy(samples: Samples) -> str:
    def row(peer: str) -> tuple[str, ...]:
        where: Sample = {"peer": peer, "callers": BUSY}
        return (
            peer,
            samples.spread("closed", "calls_per_s", **where).text(0),
            samples.ratio("closed", "calls_per_s", {"peer": SERVICE, "callers": BUSY}, where).text(2),
            samples.spread("closed", "cpu_us", **where).text(0),
            samples.spread("closed", "p99_ms", **where).text(1),
            samples.spread("closed", "p50_ms", peer=peer, callers=1).text(2),
            f"{max(samples.values('closed', 'generator', **where)):.0%}",
        )

    head = (*("", "calls/s", "this service ÷ it", "CPU a call, µs", "p99, ms", "median of 1 caller, ms", "generator"),)
    return f"{BUSY} callers, closed loop:\n\n" + _table(head, [row(peer) for peer in _peers(samples, "closed")])


def _by_callers(samples: Samples) -> str:
    def cells(peer: str) -> Iterator[str]:
        yield peer
        for callers in CALLERS:
            yield f"{samples.spread('closed', 'calls_per_s', peer=peer, callers=callers).median:,.0f}"

    rows = [tuple(cells(peer)) for peer in _peers(samples, "closed")]
    return "Calls a second by the number of callers:\n\n" + _table(("", *map(str, CALLERS)), rows)


def _open(samples: Samples) -> str:
    def cells(peer: str) -> Iterator[str]:
        yield peer
        for share in SHARES:
            p50 = samples.spread("open", "p50_ms", peer=peer, share=share).median
            yield f"{p50:.2f}, {samples.spread('open', 'p99_ms', peer=peer, share=share).text(1)}"

    rates = [f"{share} %: {samples.of('open', share=share)[0]['rate']:,}/s" for share in SHARES]
    rows = [tuple(cells(peer)) for peer in _peers(samples, "open")]
    return "Open loop, p50 and p99 in ms from the moment at which a call was due:\n\n" + _table(("", *rates), rows)


def _neighbours(samples: Samples) -> str:
    counted = samples.of("neighbours", neighbours="bad")[-1]["their_calls"]
    ends = ", ".join(f"{kind} ({number})" for kind, number in counted.items())
    return f"How the calls of the bad neighbours ended in the last round: {ends}."


def _traces(samples: Samples) -> str:
    found = samples.ratio("traces", "cpu_us", {"traces": True}, {"traces": False})
    return f"With every call recorded and sent to a collector a call takes {found.text(2)} times the processor time."


def _locks(samples: Samples) -> str:
    rows = [
        (each["way"], *(f"{each[name] * 1e3:,.0f}" for name in ("took_s", "read_s", "write_s")))
        for each in samples.of("locks")
    ]
    head = ("", "took", "longest read beside it", "longest write")
    return "Migrating a million rows of 1 KB, and how long others waited meanwhile, in ms:\n\n" + _table(head, rows)
