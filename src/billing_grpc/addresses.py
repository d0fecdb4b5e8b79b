"""The addresses a server may be told to listen on. Pure."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

_HOST_PORT: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_MAX_PORT: Final = 65535
_MAX_SOCKET_PATH: Final = 100  # the kernel's limit is 107 bytes on Linux, 103 on macOS


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host and a port; port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is written in a setting and printed; an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket at an absolute path."""

    path: str

    def __str__(self) -> str:
        """As it is written in a setting and printed."""
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_tcp(text: str) -> TcpAddress:
    """A `host:port` as an address.

    Raises:
        ValueError: it is not one; says what would be.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > _MAX_PORT:
        raise ValueError(f"{text!r} is not host:port with a port of 0 to {_MAX_PORT}, as in 127.0.0.1:50051")
    return TcpAddress(match["host"].strip("[]"), int(match["port"]))


def parse(text: str) -> Address:
    """One listener of `BILLING_GRPC_LISTEN`: `host:port` or `unix:/path`.

    Raises:
        ValueError: it is neither; says what would be.
    """
    if text.startswith(("tls://", "mtls://")):
        raise ValueError(f"{text!r}: TLS listeners are not available in this version; use loopback or unix:/path")
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or len(path.encode()) > _MAX_SOCKET_PATH:
            raise ValueError(f"{text!r} is not unix: and an absolute path of at most {_MAX_SOCKET_PATH} bytes")
        return UnixAddress(path)
    return parse_tcp(text)
