"""The load generator: a closed loop (callers that wait for their answers) or an open loop (calls that come by the clock)."""

import itertools
import random
import select
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from benchmarks.connections import Connection, Request

_PATIENCE: Final = 10.0
"""Seconds to wait for an answer before the run fails."""
_FIRST_SEED: Final = 20_261_126


@dataclass(slots=True)
class Outcome:
    """What a run measured.

    Attributes:
        seconds: from the first request to the last answer.
        generator: the share of one core that this process used meanwhile. Near 1 the generator was the limit.
        latencies: seconds of each call, in the order of the answers. In an open loop from the moment it was due.
        problems: what was wrong with answers.
    """

    seconds: float = 0.0
    generator: float = 0.0
    latencies: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Return the calls a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: int) -> float:
        """Return the latency in seconds that this part of the calls did not exceed."""
        return statistics.quantiles(self.latencies, n=100, method="inclusive")[percent - 1]


def closed_loop(
    connections: Sequence[Connection], requests: Sequence[Request], callers: int, seconds: float
) -> Outcome:
    """Keep this many calls in flight, spread evenly over the connections; each answer starts the next call."""
    chosen = _random_order(requests)
    with _measured() as outcome:
        end = time.perf_counter() + seconds
        for connection in itertools.islice(itertools.cycle(connections), callers):
            connection.start(next(chosen), time.perf_counter())
        for connection in connections:
            connection.flush()
        in_flight = callers
        while in_flight:
            for connection in _readable(connections, _PATIENCE):
                now, answers = _take(connection, outcome)
                if now < end:
                    for _ in range(answers):
                        connection.start(next(chosen), now)
                    connection.flush()
                else:
                    in_flight -= answers
    return outcome


def open_loop(connections: Sequence[Connection], requests: Sequence[Request], rate: float, seconds: float) -> Outcome:
    """Start calls at random moments, this many a second on average, whatever the server does.

    A call counts from the moment it was due, also if it could not be sent yet, so a server that stalls is charged with every
    call that it held up. The moments and the requests are the same in every run.
    """
    chosen = _random_order(requests)
    with _measured() as outcome:
        start = time.perf_counter()
        due = deque(start + moment for moment in _arrivals(rate, seconds))
        unfinished = len(due)
        while unfinished:
            least_busy = max(connections, key=_free)
            if due and least_busy.free:
                patience = due[0] - time.perf_counter()
                if patience <= 0:
                    least_busy.start(next(chosen), due.popleft())
                    least_busy.flush()
                    continue
                ready = _readable(connections, patience, idle_is_fine=True)
            else:
                ready = _readable(connections, _PATIENCE)
            for connection in ready:
                unfinished -= _take(connection, outcome)[1]
    return outcome


def _free(connection: Connection) -> int:
    return connection.free


def _arrivals(rate: float, seconds: float) -> Iterator[float]:
    gaps = random.Random(_FIRST_SEED)  # noqa: S311 - no secret
    moment = gaps.expovariate(rate)
    while moment < seconds:
        yield moment
        moment += gaps.expovariate(rate)


def _random_order(requests: Sequence[Request]) -> Iterator[Request]:
    chosen = random.Random(_FIRST_SEED)  # noqa: S311 - no secret
    while True:
        yield from chosen.choices(requests, k=1000)


@contextmanager
def _measured() -> Iterator[Outcome]:
    outcome = Outcome()
    began, used = time.perf_counter(), time.process_time()
    yield outcome
    outcome.seconds = time.perf_counter() - began
    outcome.generator = (time.process_time() - used) / outcome.seconds


def _readable(connections: Sequence[Connection], patience: float, *, idle_is_fine: bool = False) -> list[Connection]:
    # Of the ways to wait only select() takes less than a millisecond; and there are few sockets.
    by_socket = {each.socket: each for each in connections}
    ready, _, _ = select.select(list(by_socket), (), (), patience)
    if not ready and not idle_is_fine:
        raise TimeoutError(f"no answer within {patience:.0f} s")
    return [by_socket[each] for each in ready]


def _take(connection: Connection, outcome: Outcome) -> tuple[float, int]:
    """Note the answers that have come; return when, and how many they are."""
    answers = connection.receive()
    now = time.perf_counter()
    for answer in answers:
        outcome.latencies.append(now - answer.due)
        if answer.problem is not None:
            outcome.problems.append(answer.problem)
    return now, len(answers)
