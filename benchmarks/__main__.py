"""Measures the service beside its peers; `make benchmark` runs it.

Prints the tables, and keeps the data, the plot and the tables of docs/performance.md where every measure of the default
set ran in full.
"""

import argparse
import gc
import json
import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks import measures, processes, report, stage

DATA: Final = Path(__file__).parent / "results" / "benchmark.json"
_LIBRARIES: Final = ("grpcio", "protobuf", "psycopg", "uvloop", "fastapi", "uvicorn")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make benchmark", description="Measure the service beside its peers.")
    parser.add_argument("--quick", action="store_true", help="short runs, for a first look; nothing is written")
    parser.add_argument(
        "--slow", action="store_true", help="also ten million rows, and locks on a million; takes minutes and 4 GB"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[*measures.DEFAULT, *measures.SLOW],
        help="these alone: %(choices)s",
    )
    return parser.parse_args()


def _machine() -> dict[str, Any]:
    model = ""
    if sys.platform == "linux":
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(": ")[2] for line in described if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": len(processes.CORES) or os.cpu_count(),
        "pinned": processes.PINNED,
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "load_before": round(os.getloadavg()[0], 1),
    }


def _measured(chosen: list[str], plan: measures.Plan) -> dict[str, Any]:
    data: dict[str, Any] = {
        "machine": _machine(),
        "plan": {"rounds": plan.rounds, "seconds": plan.seconds},
        "samples": {},
    }
    known = {**measures.DEFAULT, **measures.SLOW}
    with stage.opened() as opened:
        gc.freeze()  # the generator must not pause to look at what stays
        for name in chosen:
            began = time.perf_counter()
            data["samples"][name] = list(known[name](opened, plan))
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        data["wrong"] = opened.problems[:10]
    return data


def main() -> None:
    """Measure, print, keep; exit with 1 if an answer was wrong."""
    arguments = _arguments()
    slow = list(measures.SLOW) if arguments.slow else []
    chosen = arguments.only or [*measures.DEFAULT, *slow]
    data = _measured(chosen, measures.QUICK if arguments.quick else measures.FULL)
    print(report.figures(data))
    print(report.profile(data))
    if not arguments.quick and not arguments.only:
        _keep(data)
    if data["wrong"]:
        raise SystemExit("answers were wrong:\n" + "\n".join(data["wrong"]))


def _keep(data: dict[str, Any]) -> None:
    from benchmarks import plot  # noqa: PLC0415 - matplotlib is slow to load, and would count as the generator's memory

    if DATA.exists():  # the slow measures keep the figures of the run that had them
        before = json.loads(DATA.read_text(encoding="utf-8"))["samples"]
        data["samples"] = {name: before[name] for name in measures.SLOW if name in before} | data["samples"]
    text = json.dumps(data, indent=1)
    a_sample_a_line = re.sub(r"\{[^{}]*\}", lambda found: " ".join(found[0].split()), text)
    DATA.write_text(a_sample_a_line + "\n", encoding="utf-8")
    plot.draw(data)
    report.write(data)


if __name__ == "__main__":
    main()
