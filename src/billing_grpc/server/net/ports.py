"""Looks at an address before gRPC binds it, which takes what it should leave alone and hardly says what is wrong."""

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from billing_grpc.addresses import Address, TcpAddress, UnixAddress
from billing_grpc.errors import ListenError

_PROBE_SECONDS: Final = 1.0


def require_free(address: Address) -> None:
    """Comes back when nobody else has the address.

    Raises:
        ListenError: it is taken or cannot be used; names it and says why.
    """
    if isinstance(address, UnixAddress):
        _require_free_path(address)
    elif address.port != 0:
        _require_free_port(address)


def _require_free_path(address: UnixAddress) -> None:
    path = Path(address.path)
    _require_folder(address, path.parent)
    if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
        raise ListenError(f"cannot listen on {address}: what stands there is not a socket; name another path")
    # gRPC removes a socket that stands at the path before it binds: one that somebody answers must not be stolen.
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(address.path)
        except (FileNotFoundError, ConnectionRefusedError):
            pass  # nothing there, or nobody behind it
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
    # Of a name with several addresses gRPC would bind only those that happen to be free.
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
                # An address that this machine lacks (no IPv6, say) is no reason to refuse the others.
                if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                    raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
