"""Measure how long after a failover a server answers rightly again.

The primary is killed under load. A second later, as a failover manager would, the script promotes its standby. From then on
it waits for the first right answer about a workspace that stores `byok`, and for the first change that is accepted. All the
while it also asks about a workspace that stores `platform_managed`, in an organisation whose default is `byok`: each other
mode that is answered for it is wrong.
"""

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import grpc

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from tests.faults.deployments import BOTH, LINK, LINK_POOLED, Served, all_deployments
from tests.faults.pair import ask, is_primary
from tests.support.polling import until

DETECTION: Final = 1.0
"""Seconds from the kill to the promotion."""

BYOK, CLOSED = pb.BILLING_MODE_BYOK, pb.BILLING_MODE_PLATFORM_MANAGED
_PAUSE: Final = 0.002

WAYS: Final = {
    BOTH: "both hosts in the address",
    LINK: "one host, whose name moves",
    LINK_POOLED: "one host, whose name moves, behind PgBouncer in transaction mode",
}


@dataclass
class Seen:
    """What callers saw from one moment on.

    Attributes:
        answers: how many decisions were answered.
        wrong: how many of them opened the closed workspace.
        right: for each decision that was answered rightly about the open workspace, when its call began and ended.
        changes: the same for each change that was accepted.
    """

    answers: int = 0
    wrong: int = 0
    right: list[tuple[float, float]] = field(default_factory=list)
    changes: list[tuple[float, float]] = field(default_factory=list)


@contextmanager
def calling(served: Served) -> Iterator[Seen]:
    """Callers without a pause, until the context ends."""
    seen, stopping, scene, stub = Seen(), threading.Event(), served.scene, served.server.stub

    def decide() -> None:
        while not stopping.wait(_PAUSE):
            began = time.monotonic()
            resolution = stub.ResolveBillingMode(
                service_pb.ResolveBillingModeRequest(workspace_id=scene.read), timeout=2
            ).resolution
            if resolution.resolved_mode == BYOK:
                seen.right.append((began, time.monotonic()))
            closed = stub.ResolveBillingMode(
                service_pb.ResolveBillingModeRequest(workspace_id=scene.closed), timeout=2
            ).resolution
            seen.answers += 2
            seen.wrong += closed.resolved_mode != CLOSED

    def change() -> None:
        modes = [CLOSED, BYOK]
        while not stopping.wait(_PAUSE):
            began = time.monotonic()
            request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=scene.written, mode=modes[0])
            try:
                stub.SetWorkspaceBillingMode(request, timeout=2)
            except grpc.RpcError:
                continue
            modes.reverse()
            seen.changes.append((began, time.monotonic()))

    threads = [threading.Thread(target=target) for target in (decide, change)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def first_after(moment: float, calls: Sequence[tuple[float, float]]) -> float:
    """Waits for a call that ended well and began after the moment; answers when it ended."""
    until(lambda: any(began > moment for began, _ in list(calls)))
    return next(end for began, end in list(calls) if began > moment)


def fail_over(served: Served) -> tuple[Seen, list[float]]:
    """One failover; answers the seconds from the promotion to writes, to the first right answer, and to a change."""
    pair = served.scene.the_pair
    with calling(served) as seen:
        until(lambda: bool(seen.right and seen.changes))
        pair.primary.kill()
        time.sleep(DETECTION)
        promoted = time.monotonic()
        ask(pair.standby.url, "SELECT pg_promote(false)")
        until(lambda: is_primary(pair.standby.url))
        writable = time.monotonic()
        pair.primary, pair.standby = pair.standby, pair.primary
        pair.point_at(pair.primary)
        moments = [writable, first_after(promoted, seen.right), first_after(promoted, seen.changes)]
    pair.rejoin()
    return seen, [moment - promoted for moment in moments]


def cell(values: Sequence[float]) -> str:
    """Median and range in milliseconds."""
    low, middle, high = (round(1000 * each) for each in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def table(runs: int) -> tuple[str, int]:
    """Fails over so often in each way; answers the table for the page, and how many answers were wrong."""
    rows, wrong = [], 0
    with all_deployments() as deployments:
        for name, way in WAYS.items():
            served = deployments.to(name)
            measured = [fail_over(served) for _ in range(runs)]
            opened, answers = (sum(getattr(seen, what) for seen, _ in measured) for what in ("wrong", "answers"))
            times = " | ".join(cell(values) for values in zip(*(times for _, times in measured), strict=True))
            rows.append(f"| {way} | {times} | {opened} of {answers:,} |")
            wrong += opened
    head = (
        "| address of the database | writes accepted, ms | first right answer, ms | first change, ms | wrong answers |"
    )
    return "\n".join([head, "|---|---|---|---|---|", *rows]), wrong
