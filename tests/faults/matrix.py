"""Runs one fault against a served database under load, and says what every RPC answered."""

import asyncio
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from tests.faults.calls import CLOSED_MODE, CORRUPT_SHOWN, DECISIONS, LATE, RPCS, SET, WRONG, Call, Caller
from tests.faults.deployments import Served
from tests.faults.fault import READERS, Fault, Scene
from tests.faults.ledger import half_writes
from tests.support.workspaces import add_workspace

LONGEST: Final = 1.0
"""Seconds: the longest answer that the contract allows, and the longest recovery."""

SLACK: Final = 0.5
"""Seconds that a busy machine may add before an answer counts as late."""

DEADLINES: Final = (2.0, 0.5)
KNOWN_AFTER: Final = 1.4
"""Seconds after which a database that does not answer is known to be down."""

AT_ONCE: Final = 0.1
"""Seconds: an answer that waited for nothing, on a busy machine; one that waited takes several times as long."""

_ATTEMPTS: Final = 4
_STARVED: Final = 0.5
_LOOK_EVERY: Final = 0.07
_BEFORE: Final = 0.3
_AFTER: Final = 0.4
_NEVER: Final = 6.0
_POOL_SIZE: Final = 8


@dataclass(frozen=True, slots=True)
class Cell:
    """What one RPC answered to one fault.

    Attributes:
        calls: how many were begun during the fault.
        verdicts: which kinds of answers there were.
        reasons: of those that were degraded.
        worst: seconds that the slowest answer took.
        recovery: seconds from the fault's end to the answer after which all told the truth; None if there was none.
    """

    rpc: str
    calls: int
    verdicts: frozenset[str]
    reasons: frozenset[str]
    worst: float
    recovery: float | None
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one fault did.

    Attributes:
        cells: by RPC.
        problems: what is wrong with the whole.
        known_down: the median of the decisions' answers, in seconds, once the database was known to be down; None where
            it is not to be.
    """

    cells: dict[str, Cell]
    problems: tuple[str, ...]
    known_down: float | None

    @property
    def everything_wrong(self) -> list[str]:
        return [*self.problems, *(f"{cell.rpc}: {each}" for cell in self.cells.values() for each in cell.problems)]


async def suffer(served: Served, fault: Fault, pace: float) -> Outcome:
    """Lets the service be called before, during and after the fault, and looks at everything it did.

    Again, a few times at most, when something was wrong while others kept this machine's processors from us.

    Args:
        pace: the seconds that each caller lets pass between two of its calls.
    """
    for _ in range(_ATTEMPTS - 1):
        began, waited = time.monotonic(), _waited_for_a_processor()
        outcome = await _suffer_once(served, fault, pace)
        share = (_waited_for_a_processor() - waited) / (time.monotonic() - began)
        if not outcome.everything_wrong or share < _STARVED:
            return outcome
        sys.stderr.write(f"again, because {share:.0%} of the time somebody waited: {outcome.everything_wrong}\n")
    return await _suffer_once(served, fault, pace)


def _waited_for_a_processor() -> float:
    """The seconds, so far, in which some process was ready to run and could not; 0 where nobody counts."""
    try:
        counted = Path("/proc/pressure/cpu").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(counted.splitlines()[0].rpartition("=")[2]) / 1e6


async def _suffer_once(served: Served, fault: Fault, pace: float) -> Outcome:
    if fault.prepare is not None:
        await asyncio.to_thread(fault.prepare, served.scene)
    async with grpc.aio.insecure_channel(served.server.address) as channel:
        stub: service_grpc.BillingModeServiceAsyncStub = service_grpc.BillingModeServiceStub(channel)
        load = _Load(stub, served.scene, fault, pace)
        await load.all_true_since(time.monotonic())
        await _settled(served)
        files = served.open_files
        load.start()
        await asyncio.sleep(_BEFORE)
        with ExitStack() as lasting:
            began = time.monotonic()
            await asyncio.to_thread(lasting.enter_context, fault.during(served.scene))
            complete = time.monotonic()
            await asyncio.sleep(fault.holds)
            incomplete = time.monotonic()
            await asyncio.to_thread(lasting.close)
            ended = time.monotonic()
        problems = [] if await load.all_true_since(ended) else ["never answered truthfully again"]
        await load.stop()
    if fault.repair is not None:
        await asyncio.to_thread(fault.repair, served.scene)
    problems += [] if not fault.stale else _told_from_the_past(load.calls, complete, incomplete)
    problems += half_writes(served.scene.url, load.calls)
    problems += await _leaks(served, files)
    problems += _log_problems(served)
    told = [
        call.took for call in load.calls if call.rpc in DECISIONS and began + KNOWN_AFTER < call.began < ended - SLACK
    ]
    known_down = statistics.median(told) if fault.known else None
    if known_down is not None and known_down > AT_ONCE:
        problems.append(f"known to be down, it still took {known_down:.2f} s")
    cells = {rpc: _cell(rpc, load.calls, fault, began, ended) for rpc in RPCS}
    return Outcome(cells, tuple(problems), known_down)


def _told_from_the_past(calls: list[Call], complete: float, incomplete: float) -> list[str]:
    """Answers from a server that may be old, other than those of calls that were under way when it became so."""
    told = {
        call.rpc
        for call in calls
        if complete < call.began and call.began + call.took < incomplete and not call.degraded
    }
    return [f"{rpc}: an answer from a server that may be old" for rpc in sorted(told)]


class _Load:
    """Callers of every RPC, with a long deadline and a short one."""

    def __init__(
        self, stub: "service_grpc.BillingModeServiceAsyncStub", scene: Scene, fault: Fault, pace: float
    ) -> None:
        self._pace = pace
        self.calls: list[Call] = []
        self._stopping = False
        self._callers = [
            Caller(stub, rpc, add_workspace(scene.url, "byok") if rpc == SET else scene.read, deadline)
            for rpc in RPCS
            for deadline in DEADLINES
        ]
        self._callers += [Caller(stub, rpc, scene.closed, DEADLINES[0], stored=CLOSED_MODE) for rpc in sorted(READERS)]
        self._extra = [Caller(stub, SET, scene.written, DEADLINES[0]) for _ in range(fault.writers)]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._call(caller)) for caller in (*self._callers, *self._extra)]

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def all_true_since(self, moment: float) -> bool:
        """Whether, soon, every RPC told the truth in all calls of some time begun after the moment."""
        while time.monotonic() < moment + _NEVER:
            if self._tasks:
                await asyncio.sleep(_LOOK_EVERY)
            else:
                self.calls += await asyncio.gather(*(caller.once() for caller in self._callers))
            recent = [call for call in self.calls if call.began > max(moment, time.monotonic() - _AFTER)]
            true = {call.rpc for call in recent if not call.degraded}
            long_enough = not self._tasks or time.monotonic() > moment + _AFTER
            if long_enough and true == set(RPCS) and not any(call.degraded for call in recent):
                return True
        return False

    async def _call(self, caller: Caller) -> None:
        while not self._stopping:
            self.calls.append(await caller.once())
            await asyncio.sleep(self._pace)


def _cell(rpc: str, calls: list[Call], fault: Fault, began: float, ended: float) -> Cell:
    mine = [call for call in calls if call.rpc == rpc]
    during = [call for call in mine if began < call.began < ended]
    degraded = [call for call in mine if call.degraded and call.began > began - _BEFORE]
    last = max((call.began for call in degraded), default=began)
    truths = [call.began + call.took for call in mine if not call.degraded and call.began > last]
    recovery = max(0.0, min(truths) - ended) if truths else None
    worst = max((call.took for call in mine), default=0.0)
    problems = [f"{call.verdict}: {call.reason}" for call in mine if call.verdict in {WRONG, LATE}]
    reasons = frozenset(call.reason for call in degraded)
    if worst > LONGEST + SLACK:
        problems.append(f"an answer took {worst:.2f} s")
    if recovery is None or recovery > LONGEST + SLACK:
        problems.append(f"recovered after {recovery} s")
    if rpc in fault.degrades and not degraded:
        problems.append("the fault was not noticed")
    if degraded and rpc not in fault.degrades | fault.may_degrade:
        problems.append(f"degraded where the truth could be told: {sorted(reasons)}")
    if not reasons <= fault.reasons:
        problems.append(f"reasons {sorted(reasons - fault.reasons)}")
    if any(call.verdict == CORRUPT_SHOWN for call in mine) != (rpc in fault.shows):
        problems.append("the corrupt text is shown where it should not be, or is not where it should")
    verdicts = frozenset(call.verdict for call in (during or mine))
    return Cell(rpc, len(during), verdicts, reasons, worst, recovery, tuple(problems))


async def _settled(served: Served) -> bool:
    """Whether, soon, the pool is full and nothing else is connected."""
    for _ in range(100):
        if served.sessions == _POOL_SIZE:
            return True
        await asyncio.sleep(_LOOK_EVERY)
    return False


async def _leaks(served: Served, files_before: int) -> list[str]:
    found = []
    if served.server.process.poll() is not None:
        return [f"the service ended with {served.server.process.returncode}"]
    for _ in range(60):
        if served.open_files <= files_before and served.sessions == _POOL_SIZE:
            return []
        await asyncio.sleep(_LOOK_EVERY)
    found.append(f"{served.open_files} open files, {files_before} before; {served.sessions} sessions")
    return found


def _log_problems(served: Served) -> list[str]:
    return [
        f"logged: {record['event']}" for record in served.server.records() if record["level"] in {"error", "critical"}
    ]
