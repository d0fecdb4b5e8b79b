"""Put load on a real server for ten minutes, and check that its memory and handles do not grow; write docs/soak.md.

Eight callers call every method without a pause, one opens a new connection for each round of calls, and one watches
health. Every five seconds the script reads the process's memory, handles and tasks from its metrics port and from the
operating system. The first quarter of the time warms up; the second quarter is compared with the last.
"""

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from billing_grpc.client import BillingClient
from billing_grpc.model import BillingMode, Resolution
from billing_grpc.server.demo import BYOK, DISABLED, INHERITS

PAGE: Final = Path(__file__).parents[1] / "docs" / "soak.md"
MINUTES: Final = 10.0
CALLERS: Final = 8
SAMPLE_EVERY: Final = 5.0
MEMORY: Final = "resident memory, MB"
MEMORY_MAY_GROW: Final = 1.03
"""The factor by which memory may grow, because allocators round. All other values are counts and must not grow."""
GRPC_THREADS: Final = "threads of gRPC's pool"
"""They may grow: gRPC adds one when all are busy, as on a busy machine, and ends one that was idle for 20 seconds."""

HELD: Final = {
    "tasks of the event loop": "billing_grpc_tasks",
    "database connections": "billing_grpc_pool_size",
    "calls in progress": "billing_grpc_calls_in_flight",
}
Samples = list[dict[str, float]]


class Load:
    """The callers and the results of their calls."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.counted: Counter[str] = Counter()

    async def go_on(self) -> None:
        """Ask until the task is cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._stay(writes=number == 0))
            group.create_task(self._come_and_go())
            group.create_task(self._watch())

    async def _stay(self, *, writes: bool) -> None:
        async with BillingClient(self._address) as client:
            while True:
                await self._ask_everything(client)
                if writes:
                    await client.set(INHERITS, BillingMode.BYOK, reason="soak")
                    await client.inherit(INHERITS, reason="soak")
                    self.counted["writes"] += 2

    async def _come_and_go(self) -> None:
        while True:
            async with BillingClient(self._address) as client:
                await self._ask_everything(client)
            self.counted["connections"] += 1

    async def _watch(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            async for status in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
                self.counted[f"health {status.status}"] += 1

    async def _ask_everything(self, client: BillingClient) -> None:
        for workspace in (BYOK, INHERITS, DISABLED, ""):
            self._decided(await client.resolve(workspace))
        for resolution in await client.resolve_many([BYOK, INHERITS, DISABLED] * 10):
            self._decided(resolution)
        decision = await client.validate_secret_write(["OPENAI_API_KEY", "SLACK_TOKEN"], workspace_id=BYOK)
        self._decided(decision.resolution)
        self._decided((await client.plan_provision_env(DISABLED, ["PATH", "openai_api_key"])).resolution)
        await client.get(BYOK)
        async for _ in client.changes(page_size=10):
            break
        self.counted["calls"] += 9

    def _decided(self, resolution: Resolution | None) -> None:
        answered = resolution is not None and resolution.error is None
        self.counted["decisions" if answered else "closed decisions"] += 1


def _sample(process: psutil.Process, metrics: str) -> dict[str, float]:
    with urllib.request.urlopen(metrics, timeout=5) as exposed:  # noqa: S310 - our own address
        families = text_string_to_metric_families(exposed.read().decode())
    shown = {sample.name: sample.value for family in families for sample in family.samples}
    return {
        MEMORY: process.memory_info().rss / 1e6,
        "file descriptors": process.num_fds(),
        "threads of the service": process.num_threads() - (of_grpc := _grpc_threads(process.pid)),
        GRPC_THREADS: of_grpc,
        **{name: shown[metric] for name, metric in HELD.items()},
    }


def _grpc_threads(pid: int) -> int:
    """Return the number of threads in gRPC's pool; 0 on a system that does not show the names of threads."""
    number = 0
    for name in Path(f"/proc/{pid}/task").glob("*/comm"):
        with suppress(FileNotFoundError):  # it has just ended
            number += name.read_text(encoding="utf-8").strip() == "event_engine"
    return number


async def _under_load(address: str, metrics: str, pid: int, minutes: float) -> tuple[Samples, Counter[str]]:
    load, process = Load(address), psutil.Process(pid)
    running = asyncio.create_task(load.go_on())
    samples: Samples = []
    until = time.monotonic() + minutes * 60
    while time.monotonic() < until:
        done, _ = await asyncio.wait((running,), timeout=SAMPLE_EVERY)
        if done:
            await running
        samples.append(await asyncio.to_thread(_sample, process, metrics))
    running.cancel()
    await asyncio.wait((running,))
    return samples, load.counted


async def _served(data: str, minutes: float) -> tuple[Samples, Counter[str], int]:
    """Return the samples, the results of the calls, and the exit code of a server that this function starts."""
    settings = {
        "BILLING_GRPC_LOCAL_ADMIN": "on",
        "BILLING_GRPC_LISTEN": "127.0.0.1:50953",
        "BILLING_GRPC_METRICS_LISTEN": "127.0.0.1:50954",
        "BILLING_GRPC_DATA_DIR": f"{data}/postgres",
        "BILLING_GRPC_LOG_LEVEL": "WARNING",
    }
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "billing_grpc", "serve"),
        env={**os.environ, **settings},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        if server.stdout is None or b"listening" not in await server.stdout.readline():
            raise SystemExit("the server did not start")
        metrics = "http://" + settings["BILLING_GRPC_METRICS_LISTEN"]
        samples, counted = await _under_load(settings["BILLING_GRPC_LISTEN"], metrics, server.pid, minutes)
    finally:
        if server.returncode is None:
            server.send_signal(signal.SIGTERM)
        code = await server.wait()
    return samples, counted, code


def _table(samples: Samples) -> tuple[list[str], bool]:
    """Return rows that compare the second quarter with the last, and whether nothing grew."""
    quarter = len(samples) // 4
    rows, flat = [], True
    for name in samples[0]:
        before, after = ([each[name] for each in part] for part in (samples[quarter : 2 * quarter], samples[-quarter:]))
        middle = statistics.median(before), statistics.median(after)
        grew = middle[1] > middle[0] * MEMORY_MAY_GROW if name == MEMORY else middle[1] > max(before)
        flat = flat and (name == GRPC_THREADS or not grew)
        rows.append(f"| {name} | {middle[0]:.0f} ({max(before):.0f}) | {middle[1]:.0f} ({max(after):.0f}) |")
    return rows, flat


def main() -> None:
    """Run for the minutes of the first argument; exit with 1 if something grew or a decision was closed."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    with tempfile.TemporaryDirectory() as data:
        # As root the database runs as another user, which needs access to the folder.
        Path(data).chmod(0o711)
        samples, counted, code = asyncio.run(_served(data, minutes))
    rows, flat = _table(samples)
    page = f"""# Under load for long

Written by `make soak`: {minutes:g} minutes of calls without a pause to one real server with its embedded database.
{CALLERS} callers keep their connection, one opens a new connection for each round of calls, and one watches health.

{counted["calls"]:,} calls, {counted["decisions"]:,} decisions, of which {counted["closed decisions"]} were closed,
{counted["writes"]:,} writes, {counted["connections"]:,} connections opened and closed; exit code {code}.

| held by the process: median (maximum) | second quarter | last quarter |
|---|---|---|
""" + "\n".join([*rows, ""])
    if minutes >= MINUTES:
        PAGE.write_text(page, encoding="utf-8")
    sys.stdout.write(page)
    sys.exit(0 if flat and code == 0 and not counted["closed decisions"] else 1)


if __name__ == "__main__":
    main()
