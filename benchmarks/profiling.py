"""Where a server's time goes: stacks sampled by py-spy, counted by the part of the program that they are in."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

_PER_SECOND: Final = 200
_PARTS: Final = (
    ("psycopg", re.compile(r"/psycopg(_pool|_binary)?/")),
    ("grpc.aio", re.compile(r"/site-packages/grpc/")),
    ("protobuf", re.compile(r"/google/protobuf/")),
    ("log lines", re.compile(r"/structlog/|/orjson/|/logging/|/json/")),
    ("metrics library", re.compile(r"/prometheus_client/")),
    ("event loop, and the compiled part of grpc.aio", re.compile(r"/asyncio/|/uvloop/|/selectors\.py")),
)
_WAITS: Final = re.compile(r"/selectors\.py:\d+\)$")
_OURS: Final = re.compile(r"/billing_grpc/((?:[a-z_]+/){0,2})")


def _part(stack: str) -> str:
    """Return the part of the innermost frame that belongs to one; frames of the standard library belong to their callers."""
    for frame in reversed(stack.split(";")):
        ours = _OURS.search(frame)
        if ours is not None:
            return f"billing_grpc/{ours[1]}".rstrip("/")
        for name, pattern in _PARTS:
            if pattern.search(frame):
                return name
    return "elsewhere"


@contextmanager
def sampled(pid: int, seconds: int, into: Path) -> Iterator[dict[str, Any]]:
    """Sample a process meanwhile; when the context ends, the dictionary holds the shares in per cent.

    `parts` are of the samples in which the main thread did not wait. `threads` tells the processor time of the main thread
    and of all others, which are gRPC's core and the threads that write. Without the right to look into processes it holds
    `problem`.
    """
    found: dict[str, Any] = {}
    command = [
        *(
            str(Path(sys.executable).with_name("py-spy")),
            "record",
            "--pid",
            str(pid),
            "--duration",
            str(seconds),
            "--rate",
            str(_PER_SECOND),
        ),
        *("--format", "raw", "--full-filenames", "--threads", "--nonblocking", "--output", str(into)),
    ]
    before = _by_thread(pid)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as spy:
        yield found
        _, complaint = spy.communicate()
    after = _by_thread(pid)
    if spy.returncode or not into.exists():
        found["problem"] = complaint.strip().splitlines()[0] if complaint.strip() else "py-spy failed"
        return
    counted: Counter[str] = Counter()
    for line in into.read_text(encoding="utf-8", errors="replace").split("\n"):
        stack, _, count = line.rpartition(" ")
        # A process that is not paused may change a stack while it is read: then the line is torn.
        if count.isdecimal() and stack.startswith(f"thread ({pid})") and not _WAITS.search(stack):
            counted[_part(stack)] += int(count)
    found["samples"] = counted.total()
    found["parts"] = {name: round(100 * count / counted.total(), 1) for name, count in counted.most_common()}
    used = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
    main = 100 * used[pid] / max(sum(used.values()), 0.01)
    found["threads"] = {"main": round(main, 1), "others": round(100 - main, 1)}


def _by_thread(pid: int) -> dict[int, float]:
    return {each.id: each.user_time + each.system_time for each in psutil.Process(pid).threads()}
