"""Know whether gRPC works in a process that was forked, and keep forks away from running calls.

Measured with grpcio 1.83 on Linux, in a child of a process that used gRPC:

- After a use with asyncio, even on a loop that has ended, a call in the child hangs or crashes it.
- After blocking calls that had ended, a new channel in the child works if it shares no connection with the parent's.
- After a fork during a blocking call, one child in twelve crashed. So a fork waits for these calls. `subprocess` forks in
  this sense only with `preexec_fn`.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from billing_grpc.errors import ClientMisused, ServerUnreachable

_FORKED: Final = (
    "gRPC does not work in this process, because its parent used gRPC before the fork; make the first call after the fork,"
    " or use billing_grpc.sync alone in the parent, or start processes by 'spawn' or 'forkserver'"
)
_FORK_PATIENCE: Final = 6.0
"""Seconds that a fork waits for running calls: a little more than a call takes by default."""

_CALL_PATIENCE: Final = 0.5
"""Seconds that a call waits for a fork."""

_imported_in: Final = os.getpid()
_asyncio_used_in: set[int] = set()
_answered_in: set[int] = set()
_overdue_in: set[int] = set()


def use_asyncio() -> None:
    """Note that the client uses gRPC with asyncio in this process.

    Raises:
        ClientMisused: gRPC does not work in this process.
    """
    require_usable()
    _asyncio_used_in.add(os.getpid())


def require_usable() -> None:
    """Return if gRPC may work in this process.

    Raises:
        ClientMisused: it was forked after the client used gRPC with asyncio or while a call ran, or gRPC hangs in it.
    """
    if belongs_to_parent() or _gate.forked_in_a_call or _overdue_in - _answered_in:
        raise ClientMisused(_FORKED)


def belongs_to_parent() -> bool:
    """Return whether the client used gRPC with asyncio before the fork that made this process, and not since."""
    return bool(_asyncio_used_in) and os.getpid() not in _asyncio_used_in


def is_fork() -> bool:
    """Return whether this process was forked since the client was imported."""
    return os.getpid() != _imported_in


def is_doubtful() -> bool:
    """Return whether gRPC may hang here: this is a fork, other code may have used gRPC before it, and no call has ended."""
    return is_fork() and os.getpid() not in _answered_in


def note_end_of_call() -> None:
    """Note that gRPC ended a call in this process, so it works here."""
    _answered_in.add(os.getpid())


def note_overdue_call() -> None:
    """Note that a call still runs after its deadline: until it ends, further calls are not tried."""
    _overdue_in.add(os.getpid())


def deadline_missed() -> ClientMisused | ServerUnreachable:
    """Return the error of a call that gRPC did not end at its deadline."""
    if is_doubtful():
        return ClientMisused(_FORKED)
    return ServerUnreachable("gRPC did not end the call at its deadline")


class _Gate:
    """Make a fork wait for the running calls, and new calls for a fork.

    A signal's handler may interrupt each of these lines with a call, a fork, or an exception of its own. The lock is
    therefore reentrant, and no count can be left behind. No fork holds the lock while handlers of other code run.
    """

    def __init__(self) -> None:
        self.forked_in_a_call = False
        self._condition = threading.Condition(threading.RLock())
        self._running: dict[object, int] = {}
        self._wanting: set[int] = set()
        self._forking: set[int] = set()

    @contextmanager
    def call(self, seconds: float) -> Iterator[float]:
        began = time.monotonic()
        this = object()
        try:
            with self._condition:
                self._condition.wait_for(lambda: not self._wanting, min(seconds / 2, _CALL_PATIENCE))
                if self._forking:
                    raise ServerUnreachable("a fork of this process takes too long")
                self._running[this] = threading.get_ident()
            yield seconds - (time.monotonic() - began)
        finally:
            # First, because a handler may raise while the lock is taken.
            self._running.pop(this, None)
            with self._condition:
                self._condition.notify_all()

    def before_fork(self) -> None:
        me = threading.get_ident()
        with self._condition:
            self._wanting.add(me)
            try:
                # A signal handler may fork in the middle of a call of its own thread.
                self._condition.wait_for(lambda: {me}.issuperset(self._running.values()), _FORK_PATIENCE)
            finally:
                self._forking.add(me)

    def after_fork_in_parent(self) -> None:
        with self._condition:
            self._wanting.discard(threading.get_ident())
            self._forking.discard(threading.get_ident())
            self._condition.notify_all()

    def after_fork_in_child(self) -> None:
        # The other threads, which would end their calls and release the lock, are missing here.
        self._condition = threading.Condition(threading.RLock())
        self._wanting, self._forking = set(), set()
        self.forked_in_a_call = self.forked_in_a_call or bool(self._running)


_gate: Final = _Gate()
blocking_call: Final = _gate.call
"""A context for a blocking call that may take these seconds, which yields those that are left: a fork waits for its end."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_gate.before_fork,
        after_in_parent=_gate.after_fork_in_parent,
        after_in_child=_gate.after_fork_in_child,
    )
