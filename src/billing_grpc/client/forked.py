"""Whether this process was forked from one that had used gRPC, whose threads do not come along: there it hangs or aborts."""

import os
from typing import Final

from billing_grpc.errors import ClientMisused, ServerUnreachable

_FORKED: Final = (
    "this process was forked from one that had used gRPC, which does not work in it; make the first client after the fork,"
    " or start processes by 'spawn' or 'forkserver'"
)
_imported_in: Final = os.getpid()
_used_in: set[int] = set()


def use_grpc() -> None:
    """Note that the client uses gRPC in this process.

    Raises:
        ClientMisused: it did so before the fork that made this process.
    """
    if grpc_belongs_to_parent():
        raise ClientMisused(_FORKED)
    _used_in.add(os.getpid())


def grpc_belongs_to_parent() -> bool:
    """Whether the client used gRPC before the fork that made this process."""
    return bool(_used_in) and os.getpid() not in _used_in


def deadline_missed() -> ClientMisused | ServerUnreachable:
    """Why gRPC did not end a call at its deadline; in a fork, something else may have used it before."""
    if os.getpid() != _imported_in:
        return ClientMisused(_FORKED)
    return ServerUnreachable("gRPC did not end the call at its deadline")
