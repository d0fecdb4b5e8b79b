"""The addresses that a server can listen on. Pure."""

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final, Literal

_HOST_PORT: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_SCHEMES: "Final[dict[str, Security]]" = {"tls://": "tls", "mtls://": "mtls"}
_MAX_PORT: Final = 65535
_MAX_SOCKET_PATH: Final = 100  # the kernel's limit is 107 bytes on Linux, 103 on macOS


Security = Literal["plain", "tls", "mtls"]


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host and a port; port 0 asks the system for a free one.

    Attributes:
        host: a name or an IP address, without brackets.
        port: 0 to 65535.
        security: `plain` text, `tls` with a server certificate, `mtls` with a client certificate required.
    """

    host: str
    port: int
    security: Security = "plain"

    def __str__(self) -> str:
        """Return the address as it is written in a setting and printed."""
        return self.target if self.security == "plain" else f"{self.security}://{self.target}"

    @property
    def target(self) -> str:
        """Return `host:port` for a socket library, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket at an absolute path."""

    path: str

    def __str__(self) -> str:
        """Return the address as it is written in a setting and printed."""
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_tcp(text: str) -> TcpAddress:
    """Return a `host:port` as an address.

    Raises:
        ValueError: the text has another form; the message names the expected one.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > _MAX_PORT:
        raise ValueError(f"{text!r} is not host:port with a port of 0 to {_MAX_PORT}, as in 127.0.0.1:50051")
    return TcpAddress(match["host"].strip("[]"), int(match["port"]))


def parse(text: str) -> Address:
    """Parse a listener of `BILLING_GRPC_LISTEN`: `host:port`, `tls://host:port`, `mtls://host:port` or `unix:/path`.

    Raises:
        ValueError: the text has another form; the message names the expected one.
    """
    for scheme, security in _SCHEMES.items():
        if text.startswith(scheme):
            return replace(parse_tcp(text.removeprefix(scheme)), security=security)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or len(path.encode()) > _MAX_SOCKET_PATH:
            raise ValueError(f"{text!r} is not unix: and an absolute path of at most {_MAX_SOCKET_PATH} bytes")
        if "%" in path:
            # gRPC decodes the path like a URL and would bind another file than the one whose mode the server sets.
            raise ValueError(
                f"{text!r} has a percent sign in its path, which gRPC takes for an escape: use another path"
            )
        return UnixAddress(path)
    return parse_tcp(text)
