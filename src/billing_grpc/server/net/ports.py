"""Make sure that an address is free before gRPC binds it, and hold ports that several workers share.

gRPC replaces a socket that another server answers on, binds only the free ones of a name's addresses, and gives no reason
when it fails.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from billing_grpc.addresses import Address, TcpAddress, UnixAddress
from billing_grpc.errors import ListenError

_CONNECT_TIMEOUT: Final = 1.0
"""Seconds."""
_ATTEMPTS: Final = 10
_ANY_IPV6: Final = "::"


def require_free(address: Address) -> None:
    """Return if the address is free.

    Raises:
        ListenError: the address is taken or cannot be used; the message names it and the cause.
    """
    if isinstance(address, UnixAddress):
        _require_free_path(address)
    elif address.port != 0:
        _require_free_port(address)


def _require_free_path(address: UnixAddress) -> None:
    path = Path(address.path)
    _require_folder(address, path.parent)
    if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
        raise ListenError(f"cannot listen on {address}: this file is not a socket; name another path")
    # gRPC removes a socket at the path before it binds, even one on which another server answers.
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_TIMEOUT)
        try:
            probe.connect(address.path)
        except (FileNotFoundError, ConnectionRefusedError):
            pass  # no file, or a socket that no server listens on
        except OSError as error:
            raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
        else:
            raise ListenError(f"cannot listen on {address}: another server answers there; stop it first")


def _require_folder(address: UnixAddress, folder: Path) -> None:
    try:
        if not folder.is_dir():
            raise ListenError(f"cannot listen on {address}: there is no folder {folder}; make it first")
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ListenError(f"cannot listen on {address}: this user may not write to the folder {folder}")


def _require_free_port(address: TcpAddress) -> None:
    # If a name has several addresses, gRPC would bind only the free ones, silently.
    try:
        targets = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
    for family, kind, protocol, _, target in targets:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(target)
            except OSError as error:
                # An address that this machine lacks (no IPv6, say) does not make the others unusable.
                if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                    raise ListenError(f"cannot listen on {address}: {error.strerror}") from error


@contextmanager
def reserved(addresses: Sequence[TcpAddress]) -> Iterator[tuple[TcpAddress, ...]]:
    """Yield the addresses with their real ports, and hold the ports until the context ends.

    Sockets that never listen hold them, so that workers can share a port and no other process gets it.

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
                # If a name has several addresses, a port that is free on one of them may be taken on the next.
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
            absent = error  # as in _require_free_port
        else:
            held, port = True, holder.getsockname()[1]
    if absent is not None and not held:
        raise absent
    return port


def _hold(family: socket.AddressFamily, target: tuple[object, ...]) -> socket.socket:
    """Return a socket that took the address exclusively and then shares it with this user's SO_REUSEPORT sockets."""
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, target[0] != _ANY_IPV6)
        try:
            holder.bind(target)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # SO_REUSEADDR ignores lingering connections of an earlier server; a listening socket is still an error.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(target)
        # After the bind: set before it, it would let this socket share the port with another program's.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        holder.close()
        raise
    return holder
