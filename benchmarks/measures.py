"""What is measured: each function here yields samples, of which one holds what one run of one server said.

Rounds are interleaved: in each round every server has its turn, so that a machine that slows down slows all of them, and a
ratio compares two runs of the same round.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks import floors, migration_lock, processes, profiling, workspaces
from benchmarks.samples import (
    BARE_QUERY,
    BUSY,
    CALLERS,
    EMPTY_UVLOOP,
    FASTAPI,
    GO,
    NAIVE_UVLOOP,
    PROTOBUF,
    SERVICE,
    SHARES,
    Sample,
)
from benchmarks.stage import CONNECTIONS, Stage

OPEN_LOOP: Final = (SERVICE, EMPTY_UVLOOP, NAIVE_UVLOOP, FASTAPI, GO)
IDLE: Final = 1000
NEIGHBOURED: Final = 40
"""Per cent of the service's core that healthy callers use beside bad neighbours."""
_WARM_UP: Final = 0.3
_SETTLED: Final = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How often and how long, in seconds.

    Runs are short and many: a shared machine may be slow for some seconds, and then all servers of a round should be slow.
    """

    rounds: int
    seconds: float

    @property
    def of_tails(self) -> "Plan":
        """Return the plan of what needs long runs: the latencies of few calls, and processor time of single processes."""
        return Plan(max(2, self.rounds // 3), 4 * self.seconds)


FULL: Final = Plan(rounds=15, seconds=0.25)
QUICK: Final = Plan(rounds=3, seconds=0.15)


def closed(stage: Stage, plan: Plan) -> Iterator[Sample]:
    """Yield each server's answers to 1 to 64 callers that never pause, and the bare query."""
    for name in stage.servers:
        stage.resolve(name, callers=BUSY, seconds=_WARM_UP)
    for turn in range(plan.rounds):
        yield {"round": turn, "peer": BARE_QUERY, "p50_ms": floors.bare_query_ms(stage)}
        for callers in CALLERS:
            for name in stage.servers:
                yield {"round": turn, **stage.resolve(name, callers=callers, seconds=plan.seconds)}


def open_rates(stage: Stage, plan: Plan) -> Iterator[Sample]:
    """Yield each server's latencies under calls that come by the clock, at the same rates for all."""
    plan = plan.of_tails
    capacity = min(
        stage.resolve(name, callers=BUSY, seconds=plan.seconds)["calls_per_s"]
        for name in (SERVICE, NAIVE_UVLOOP, FASTAPI)
    )
    for turn in range(plan.rounds):
        for share in SHARES:
            for name in (each for each in OPEN_LOOP if each in stage.servers):
                sample = stage.resolve(name, rate=capacity * share / 100, seconds=plan.seconds)
                yield {"round": turn, "share": share, **sample}


def batch(stage: Stage, plan: Plan) -> Iterator[Sample]:
    """Yield workspaces a second of `BatchResolveBillingModes`, and of protobuf alone for the same answers."""
    requests = workspaces.batch_requests()
    server = stage.servers[SERVICE]
    for turn in range(plan.rounds):
        connections = stage.grpc(server, "BatchResolveBillingModes", workspaces.is_batch)
        sample = stage.closed(server, connections, requests, CONNECTIONS, plan.seconds)
        yield {
            "round": turn,
            "peer": SERVICE,
            "workspaces_per_s": round(sample["calls_per_s"] * workspaces.BATCH),
            **sample,
        }
        yield {"round": turn, "peer": PROTOBUF, **floors.protobuf(stage)}


def validate(stage: Stage, plan: Plan) -> Iterator[Sample]:
    """Yield `ValidateSecretWrite` without a database call beside the empty call."""
    yield from _beside_the_empty_call(stage, plan, "ValidateSecretWrite", workspaces.is_allowed)


def down(stage: Stage, plan: Plan) -> Iterator[Sample]:
    """Yield `ResolveBillingMode` of a service that knows its database to be down beside the empty call."""
    nowhere = f"postgresql://127.0.0.1:{processes.free_port()}/none"
    with stage.service("down", DATABASE_URL=nowhere) as server:
        time.sleep(_SETTLED)
        requests = workspaces.resolve_requests()
        for turn in range(plan.rounds):
            yield {"round": turn, **stage.resolve(EMPTY_UVLOOP, callers=BUSY, seconds=plan.seconds)}
            connections = stage.grpc(server, "ResolveBillingMode", workspaces.is_closed)
            sample = stage.closed(server, connections, requests, BUSY, plan.seconds)
            yield {"round": turn, "peer": SERVICE, **sample}


def workers(stage: Stage, plan: Plan) -> Iterator[Sample]:
    """Yield one worker on one core beside two on two; the second has twice the callers and connections."""
    if not processes.PINNED:  # also where several workers do not work
        return
    requests, plan = workspaces.resolve_requests(), plan.of_tails
    with (
        stage.service("one_worker") as one,
        stage.service("two_workers", processes.TWO_CORES, BILLING_GRPC_WORKERS="2") as two,
    ):
        for turn in range(plan.rounds + 1):
            for count, server in ((1, one), (2, two)):
                before = server.cpu_seconds_of_each()
                connections = stage.grpc(server, "ResolveBillingMode", workspaces.is_resolved, 2 * CONNECTIONS * count)
                sample = stage.closed(server, connections, requests, BUSY * count, plan.seconds)
                used = [after - at for after, at in zip(server.cpu_seconds_of_each(), before, strict=True)]
                if turn:  # the first warms up
                    busiest_first = sorted(used, reverse=True)[:count]
                    share = round(busiest_first[-1] / max(sum(busiest_first), 0.01), 2)
                    yield {"round": turn - 1, "workers": count, "smallest_share": share, **sample}


def idle(stage: Stage, _: Plan) -> Iterator[Sample]:
    """Yield what a thousand connections, each after one call, add to the service's memory."""
    requests = workspaces.resolve_requests()
    held = []
    with stage.service("idle") as server:
        warm = stage.grpc(server, "ResolveBillingMode", workspaces.is_resolved)
        stage.closed(server, warm, requests, BUSY, _SETTLED)
        before = server.memory()
        try:
            for number in range(IDLE):
                (connection,) = stage.grpc(server, "ResolveBillingMode", workspaces.is_resolved, 1)
                held.append(connection)
                connection.start(requests[number], 0.0)
                connection.flush()
                while not (answers := connection.receive()):
                    pass
                stage.problems += [each.problem for each in answers if each.problem is not None]
            time.sleep(_SETTLED)
            yield {"round": 0, "connections": IDLE, "megabytes": round((server.memory() - before) / 1e6, 1)}
        finally:
            for connection in held:
                connection.close()


def neighbours(stage: Stage, plan: Plan) -> Iterator[Sample]:
    """Yield healthy callers' latencies alone, beside bad neighbours, and beside as many good ones."""
    server, plan = stage.servers[SERVICE], plan.of_tails
    # By the processor time of calls that come one by one: many callers at once share reads, and cost less each.
    rate = NEIGHBOURED / 100 / stage.resolve(SERVICE, callers=1, seconds=plan.seconds)["cpu_us"] * 1e6
    seconds = 2 * plan.seconds
    for turn in range(plan.rounds):
        yield {"round": turn, "neighbours": "none", **stage.resolve(SERVICE, rate=rate, seconds=seconds)}
        host, port = server.address
        for manners in ("bad", "good"):
            command = processes.python("benchmarks.neighbours", f"{host}:{port}", stage.token, manners)
            with subprocess.Popen(command, cwd=processes.ROOT, stdout=subprocess.PIPE, text=True) as others:
                if others.stdout is None or not others.stdout.readline():
                    raise SystemExit("the neighbours did not start")
                try:
                    sample = stage.resolve(SERVICE, rate=rate, seconds=seconds)
                finally:
                    others.terminate()
                yield {"round": turn, "neighbours": manners, "their_calls": json.loads(others.stdout.read()), **sample}


def many_rows(stage: Stage, plan: Plan) -> Iterator[Sample]:
    """Yield the service over ten million rows beside ten thousand; filling the table takes minutes."""
    url, plan = stage.new_database("many"), plan.of_tails
    began = time.perf_counter()
    workspaces.fill(url, workspaces.MANY)
    filled = round(time.perf_counter() - began)
    with stage.service("many", DATABASE_URL=url) as server:
        for turn in range(plan.rounds + 1):
            few = stage.resolve(SERVICE, callers=BUSY, seconds=plan.seconds)
            connections = stage.grpc(server, "ResolveBillingMode", workspaces.is_resolved)
            requests = workspaces.resolve_requests(workspaces.MANY)
            many = stage.closed(server, connections, requests, BUSY, plan.seconds)
            if turn:  # the first warms up
                yield {"round": turn - 1, "rows": workspaces.COUNT, **few}
                yield {"round": turn - 1, "rows": workspaces.MANY, "filled_in_s": filled, **many}


def traces(stage: Stage, plan: Plan) -> Iterator[Sample]:
    """Yield the service with every call recorded and sent to a collector beside the service without traces."""
    requests = workspaces.resolve_requests()
    command = processes.python("benchmarks.peers", "collector")
    with stage.peer("collector", command, processes.OTHER_CORES) as collector:
        endpoint = "http://{}:{}/v1/traces".format(*collector.address)
        with stage.service("traces", BILLING_GRPC_TRACES_ENDPOINT=endpoint) as server:
            for turn in range(plan.rounds):
                yield {"round": turn, "traces": False, **stage.resolve(SERVICE, callers=BUSY, seconds=plan.seconds)}
                connections = stage.grpc(server, "ResolveBillingMode", workspaces.is_resolved)
                yield {"round": turn, "traces": True, **stage.closed(server, connections, requests, BUSY, plan.seconds)}


def locks(stage: Stage, _: Plan) -> Iterator[Sample]:
    """Yield how long the migrations of a million rows make others wait."""
    yield from migration_lock.longest_waits(stage.new_database("locks"))


def profile(stage: Stage, plan: Plan) -> Iterator[Sample]:
    """Yield where the service's main thread is while 32 callers ask, sampled by py-spy."""
    seconds = max(4, round(10 * plan.of_tails.seconds))
    with profiling.sampled(stage.servers[SERVICE].pid, seconds, stage.directory / "profile.txt") as found:
        stage.resolve(SERVICE, callers=BUSY, seconds=seconds + 1.0)
    yield {"round": 0, **found}


Measure = Callable[[Stage, Plan], Iterator[Sample]]
DEFAULT: Final[dict[str, Measure]] = {
    "closed": closed,
    "open": open_rates,
    "batch": batch,
    "validate": validate,
    "down": down,
    "workers": workers,
    "idle": idle,
    "neighbours": neighbours,
    "traces": traces,
    "profile": profile,
}
SLOW: Final[dict[str, Measure]] = {"many_rows": many_rows, "locks": locks}


def _beside_the_empty_call(
    stage: Stage, plan: Plan, method: str, check: Callable[[bytes, list[str]], bool]
) -> Iterator[Sample]:
    server, requests = stage.servers[SERVICE], workspaces.validate_requests()
    for turn in range(plan.rounds):
        yield {"round": turn, **stage.resolve(EMPTY_UVLOOP, callers=BUSY, seconds=plan.seconds)}
        connections = stage.grpc(server, method, check)
        yield {"round": turn, "peer": SERVICE, **stage.closed(server, connections, requests, BUSY, plan.seconds)}
