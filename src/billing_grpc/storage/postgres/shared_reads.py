"""Read the overrides of many callers together.

While a read runs, new calls gather. After it, the next read asks for all of them in one query, mostly on the same
connection. So one connection serves any number of callers, and the more they are, the less each call costs. A read never
answers a call that arrived after it began.
"""

import asyncio
from collections.abc import Collection, Iterable
from contextvars import Context
from dataclasses import dataclass, field
from math import inf
from typing import Final

from billing_grpc.errors import DatabaseStale, DatabaseTimeout, DatabaseUnreachable, StorageError, ValueUnreadable
from billing_grpc.model import NO_WORKSPACE, ResolutionError, StoredOverride
from billing_grpc.storage.postgres.budgets import SUSPICIOUS_AFTER
from billing_grpc.storage.postgres.connection import Connection
from billing_grpc.storage.postgres.lending import Lease
from billing_grpc.storage.postgres.overrides import Overrides, load_overrides, require_canonical
from billing_grpc.storage.postgres.pool import BoundedPool

_TURNS: Final = 24
"""How many times the event loop turns at most before a read uses the connection of the one before it."""
_LONGEST_TURNS: Final = 0.002
"""Seconds after which no such turn begins: one of them may take long."""
_ONE_AFTER_ANOTHER: Final = 0.05
"""Seconds in which reads that follow one another may use the same connection. Then the pool may replace it."""


@dataclass(slots=True, eq=False)
class _Call:
    """A caller that waits for an override.

    Attributes:
        workspace_id: the workspace.
        deadline: when the caller gives up, in the clock of the event loop.
        answer: done once the caller has its answer or has gone.
    """

    workspace_id: str
    deadline: float
    answer: "asyncio.Future[StoredOverride]"


@dataclass(slots=True, eq=False)
class _Read:
    """Calls that one query answers.

    Attributes:
        suspicious_at: when the read has taken so long that the database itself is probed.
        sever_at: when the connection of the read is severed: late enough for each of its calls.
        calls: its calls, also those that have their answer or have gone.
        lease: the lease of its connection, which earlier reads may have used; None until the read begins.
        workspaces: what the query asks for; empty until the read begins.
        look_at: when the clock is looked at next, by `timer`.
    """

    suspicious_at: float
    sever_at: float = 0.0
    calls: list[_Call] = field(default_factory=list)
    lease: Lease | None = None
    workspaces: Collection[str] = ()
    look_at: float = inf
    timer: asyncio.Handle | None = None

    def waiting(self) -> list[_Call]:
        """Return the calls that still wait for an answer."""
        return [call for call in self.calls if not call.answer.done()]

    def stop_timer(self) -> None:
        """Look at the clock no more."""
        if self.timer is not None:
            self.timer.cancel()
        self.look_at, self.timer = inf, None


class SharedReads:
    """Loads overrides for decisions, many in one read. It belongs to one event loop."""

    def __init__(self, pool: BoundedPool) -> None:
        """Read through the connections of `pool`, and fail with its breaker."""
        self._pool = pool
        self._gathering: _Read | None = None
        self._running: set[_Read] = set()
        # The read after which the gathered calls are read. Without such a read, a new call is read at once.
        self._lane: _Read | None = None
        pool.breaker.add_listener(self._on_change)

    async def load(self, workspace_id: str, budget: float) -> StoredOverride:
        """Return the override of a workspace, read after this call began; `NO_WORKSPACE` if there is no such workspace.

        Args:
            workspace_id: a canonical id in lower case.
            budget: seconds until this method has returned or raised.

        Raises:
            StorageError: the override could not be read in time, or the database is known to be down.
        """
        require_canonical(workspace_id)
        await self._pool.require_available()
        loop = asyncio.get_running_loop()
        now = loop.time()
        call = _Call(workspace_id, now + budget, loop.create_future())
        read = self._gathering
        if read is None:
            read = self._gathering = _Read(now + SUSPICIOUS_AFTER)
        read.calls.append(call)
        read.sever_at = max(read.sever_at, self._pool.read_deadline(budget))
        self._look_at(read, min(read.suspicious_at, call.deadline))
        if self._lane is None:
            self._begin_next()
        try:
            return await call.answer
        finally:
            # An error that is raised here refers to this frame. If the frame also led to the error, only the garbage
            # collector could free them.
            del call, read

    def _begin_next(self) -> None:
        """Read what the gathered calls ask for."""
        if (read := self._gathered()) is not None:
            self._lane = read
            self._begin(read)

    def _gathered(self) -> _Read | None:
        """Return the read of the gathered calls if any of them waits. Later calls are for the read after it."""
        read, self._gathering = self._gathering, None
        if read is None or read.waiting():
            return read
        read.stop_timer()
        return None

    def _begin(self, read: _Read) -> None:
        """Begin a read. Those that follow it closely use its connection."""
        until = asyncio.get_running_loop().time() + _ONE_AFTER_ANOTHER

        async def work(connection: Connection) -> None:
            nonlocal read
            while True:
                overrides = await load_overrides(connection, read.workspaces)
                lease.end()
                self._stop(read)
                self._pool.breaker.record_success()
                _answer(read, overrides)
                following = await self._following(read, lease, until)
                if following is None:
                    return
                self._lane = read = following
                self._start(read)
                read.lease = lease
                lease.renew(read.sever_at)

        self._start(read)
        # No caller's context: a line about the read must not bear the request id of a caller that it is not about.
        context = Context()
        task, read.lease = context.run(self._pool.start_read, work, read.sever_at)
        lease = read.lease
        task.add_done_callback(lambda task: self._end(read, task), context=context)

    async def _following(self, read: _Read, lease: Lease, until: float) -> _Read | None:
        """Return the read that is to use the connection of this one next; None if no read is to use it.

        The event loop turns first. Under load each turn brings calls, and the more share a read, the less each costs. An
        idle loop turns in microseconds.
        """
        clock = asyncio.get_running_loop().time
        latest, turns = clock() + _LONGEST_TURNS, 0
        while self._lane is read and self._gathering is not None and turns < _TURNS and clock() < latest:
            await asyncio.sleep(0)
            turns += 1
        if self._lane is not read or lease.expired or self._pool.crowded:
            return None
        gathering = self._gathering
        if gathering is None:
            return None
        # After `until` the pool may replace the connection. After `sever_at` a new lease would sever a healthy connection.
        return self._gathered() if clock() < min(until, gathering.sever_at) else None

    def _start(self, read: _Read) -> None:
        # Before the query is made: a workspace that it leaves out would look like one that is not stored.
        read.workspaces = {call.workspace_id for call in read.waiting()}
        self._running.add(read)

    def _stop(self, read: _Read) -> None:
        self._running.discard(read)
        read.stop_timer()

    def _end(self, read: _Read, task: "asyncio.Task[None]") -> None:
        """If the read failed, give its calls their errors. Begin the next read."""
        self._stop(read)
        error = DatabaseUnreachable() if task.cancelled() else task.exception()
        if isinstance(error, ValueUnreadable) and len(read.workspaces) > 1:
            self._read_in_halves(read)
        elif error is not None:
            self._fail(read.waiting(), type(error) if isinstance(error, StorageError) else DatabaseUnreachable)
        self._leave_lane(read)

    def _read_in_halves(self, read: _Read) -> None:
        """Read the two halves of the workspaces: one that cannot be read must not fail the others, nor cost a read each."""
        by_id: dict[str, list[_Call]] = {}
        for call in read.waiting():
            by_id.setdefault(call.workspace_id, []).append(call)
        of_each = list(by_id.values())
        middle = len(of_each) // 2
        for half in filter(None, (of_each[:middle], of_each[middle:])):
            calls = [call for calls in half for call in calls]
            part = _Read(read.suspicious_at, read.sever_at, calls)
            self._look_at(part, min(call.deadline for call in calls))
            self._begin(part)

    def _leave_lane(self, read: _Read) -> None:
        if self._lane is read:
            self._lane = None
            self._begin_next()

    def _look_at(self, read: _Read, moment: float) -> None:
        """Look at the clock at this moment, unless an earlier look is due."""
        if read.look_at <= moment:
            return
        read.stop_timer()
        read.look_at, read.timer = moment, asyncio.get_running_loop().call_at(moment, self._look, read)

    def _look(self, read: _Read) -> None:
        """Fail the calls whose time is up. If the read has become suspicious, probe, and hold up no other read."""
        read.stop_timer()
        now = asyncio.get_running_loop().time()
        self._fail([call for call in read.waiting() if call.deadline <= now], DatabaseTimeout)
        moments = [call.deadline for call in read.waiting()]
        if now < read.suspicious_at:
            moments.append(read.suspicious_at)
        else:
            self._pool.breaker.start_probing()
            self._leave_lane(read)
        if moments:
            self._look_at(read, min(moments))

    def _on_change(self, error: StorageError | None) -> None:
        """Fail every call at once when the database becomes known to be down."""
        if error is None:
            return
        gathering, self._gathering = self._gathering, None
        if gathering is not None:
            gathering.stop_timer()
            self._fail(gathering.waiting(), type(error))
        for read in list(self._running):
            self._fail(read.waiting(), type(error))
            if read.lease is not None:
                read.lease.expire()

    def _fail(self, calls: Iterable[_Call], kind: type[StorageError]) -> None:
        """Give each call an error of its own: they are raised in different tasks."""
        for call in calls:
            call.answer.set_exception(kind())
            if issubclass(kind, (DatabaseUnreachable, DatabaseTimeout, DatabaseStale)):
                self._pool.breaker.start_probing()


def _answer(read: _Read, overrides: Overrides) -> None:
    for call in read.waiting():
        override = overrides.get(call.workspace_id, NO_WORKSPACE)
        if isinstance(override, ResolutionError):
            call.answer.set_exception(ValueUnreadable())
        else:
            call.answer.set_result(override)
