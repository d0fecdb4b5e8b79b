"""The plot of docs/performance.md: throughput by callers, and the slowest answers by rate."""

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from benchmarks.samples import CALLERS, SERVICE, Samples

PICTURE: Final = Path(__file__).parents[1] / "docs" / "performance.svg"


def draw(data: dict[str, Any]) -> None:
    """Write the picture."""
    mpl.use("svg")
    # Text stays text, and a second run of the same data gives the same bytes.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "performance", "font.size": 9})
    from matplotlib import pyplot as plt  # noqa: PLC0415 - the backend is chosen first

    samples = Samples(data)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    peers = dict.fromkeys(each["peer"] for each in samples.of("closed", callers=CALLERS[0]))
    colours = {peer: f"C{number}" for number, peer in enumerate(peers)}
    for peer in peers:
        found = [samples.spread("closed", "calls_per_s", peer=peer, callers=callers) for callers in CALLERS]
        _line(left, list(CALLERS), found, peer, colours[peer])
    left.set(title="closed loop", xlabel="callers", ylabel="calls a second", xscale="log", ylim=(0, None))
    left.set_xticks(CALLERS, [str(each) for each in CALLERS])
    left.minorticks_off()
    for peer in dict.fromkeys(each["peer"] for each in samples.of("open")):
        rates = sorted({each["rate"] for each in samples.of("open", peer=peer)})
        _line(
            right,
            rates,
            [samples.spread("open", "p99_ms", peer=peer, rate=rate) for rate in rates],
            peer,
            colours[peer],
        )
    right.set(title="open loop", xlabel="calls a second", ylabel="p99, ms", yscale="log")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(PICTURE, metadata={"Date": None})


def _line(axes: Any, at: list[int], found: list[Any], peer: str, colour: str) -> None:
    wide = peer == SERVICE
    axes.plot(at, [each.median for each in found], marker="o", color=colour, label=peer, linewidth=2.5 if wide else 1.2)
    axes.fill_between(at, [each.low for each in found], [each.high for each in found], color=colour, alpha=0.12)
