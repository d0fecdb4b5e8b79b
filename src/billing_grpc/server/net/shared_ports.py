"""Ports that the workers of one process share, and that nobody else gets while they start, serve and are replaced."""

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final

from billing_grpc.addresses import TcpAddress
from billing_grpc.errors import ListenError

_ATTEMPTS: Final = 10
_ANY_IPV6: Final = "::"


@contextmanager
def reserved(addresses: Sequence[TcpAddress]) -> Iterator[tuple[TcpAddress, ...]]:
    """The addresses with their real ports, held by sockets that never listen until the context ends.

    Raises:
        ListenError: an address is taken or cannot be used; names it.
    """
    with ExitStack() as stack:
        yield tuple(stack.enter_context(_reserved(address)) for address in addresses)


@contextmanager
def _reserved(address: TcpAddress) -> Iterator[TcpAddress]:
    for left in reversed(range(_ATTEMPTS)):
        with ExitStack() as stack:
            try:
                port = _hold_all(address, stack)
            except OSError as error:
                # Of a name with several addresses, the port that was free on one may be taken on the next.
                if address.port == 0 and left and error.errno == errno.EADDRINUSE:
                    continue
                raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
            yield replace(address, port=port)
            return


def _hold_all(address: TcpAddress, stack: ExitStack) -> int:
    port = address.port
    held, absent = False, None
    for family, _, _, _, target in socket.getaddrinfo(
        address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            holder = stack.enter_context(_hold(family, (target[0], port, *target[2:])))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            absent = error  # an address that this machine lacks (no IPv6, say) is no reason to refuse the others
        else:
            held, port = True, holder.getsockname()[1]
    if absent is not None and not held:
        raise absent
    return port


def _hold(family: socket.AddressFamily, target: tuple[object, ...]) -> socket.socket:
    """A socket that has this address to itself, then lets sockets of this user in that say they share."""
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, target[0] != _ANY_IPV6)
        try:
            holder.bind(target)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Connections of an earlier server that linger are no obstacle; who listens there still is.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(target)
        # Only now: bound with it from the start, it would let itself be put beside a stranger who shares as well.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        holder.close()
        raise
    return holder
