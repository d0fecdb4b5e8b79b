"""Detect a process that was forked after gRPC was used: it lacks gRPC's threads, so gRPC hangs or aborts in it."""

import os
from typing import Final

from billing_grpc.errors import ClientMisused, ServerUnreachable

_FORKED: Final = (
    "this process was forked after gRPC was used, and gRPC does not work in such a process; make the first client after"
    " the fork, or start processes by 'spawn' or 'forkserver'"
)
_imported_in: Final = os.getpid()
_used_in: set[int] = set()


def use_grpc() -> None:
    """Note that the client uses gRPC in this process.

    Raises:
        ClientMisused: the client used gRPC before the fork that made this process.
    """
    if grpc_belongs_to_parent():
        raise ClientMisused(_FORKED)
    _used_in.add(os.getpid())


def grpc_belongs_to_parent() -> bool:
    """Return whether the client used gRPC before the fork that made this process, and not since."""
    return bool(_used_in) and os.getpid() not in _used_in


def deadline_missed() -> ClientMisused | ServerUnreachable:
    """Return the error of a call that gRPC did not end at its deadline. In a fork, other code may have used gRPC before."""
    if os.getpid() != _imported_in:
        return ClientMisused(_FORKED)
    return ServerUnreachable("gRPC did not end the call at its deadline")
