"""What a connection to a server needs, with an event loop or without: its options, its TLS files, its token."""

import logging
import re
import time
from abc import abstractmethod
from typing import Final, Generic, TypeVar

import grpc

from billing_grpc import __version__, service_config
from billing_grpc.client import forked
from billing_grpc.client.bearer_token import BearerToken, TokenSource
from billing_grpc.client.tls import ClientTls, TlsFiles, problem
from billing_grpc.errors import ServerUnreachable
from billing_grpc.reloaded_file import ReloadedFile

# The application's own logging: this module lives in other people's processes.
log = logging.getLogger("billing_grpc.client")

_RETRY_SECONDS: Final = 1.0
"""Seconds between two reads of broken files that do not change: the cause may lie outside the files."""
_NEW_CHANNEL_SECONDS: Final = 1.0
"""Seconds between two replacements of an unreachable channel: gRPC repeats a failed name look-up at growing intervals."""

_LOCAL: Final = re.compile(
    r"unix(-abstract)?:[^,]*|(ipv4:|ipv6:|dns:|dns:///)?(localhost|127(\.[0-9]+){3}|\[::1\]):[0-9]+"
)
Options = list[tuple[str, str | int]]
_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    # A server that restarts is found again within a second; gRPC's own intervals grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # When a connection fails, the server's name is looked up again; by default that happens at most every 30 seconds.
    ("grpc.dns_min_time_between_resolutions_ms", 500),
    # A waiting call notices that its peer has vanished; the server allows one ping every ten seconds.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.primary_user_agent", f"billing-grpc-python/{__version__}"),
)
# Plain text must not leave this machine, so no proxy of the environment is used. The first option turns off `grpc_proxy`,
# `https_proxy` and `http_proxy`; the second turns off GRPC_ADDRESS_HTTP_PROXY.
_NO_PROXY: Final[tuple[tuple[str, str | int], ...]] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.address_http_proxy_enabled_addresses", ""),
)
# The parent's connection is closed in a fork, and a channel that shares it loses its first calls.
_OWN_CONNECTION: Final[tuple[tuple[str, str | int], ...]] = (("grpc.use_local_subchannel_pool", 1),)

Channel = TypeVar("Channel")


def is_local(target: str) -> bool:
    """Return whether every address of a target is on this machine."""
    return all(_LOCAL.fullmatch(address) for address in target.split(","))


class Endpoint(Generic[Channel]):
    """A server and the credentials for it.

    Args:
        target: as gRPC takes it.
        token: a bearer token's source; `None` to send no token.
        tls: the TLS files; `None` for plain text.

    Raises:
        ValueError: the token would cross a network in plain text.
        TypeError: the token's source is neither a path nor a callable; a string is neither.
    """

    def __init__(self, target: str, *, token: TokenSource | None, tls: ClientTls | None) -> None:
        if token is not None and tls is None and not is_local(target):
            raise ValueError(
                f"a token is sent only over TLS or to this machine, but {target} is another machine: give tls"
            )
        self.target = target
        self._token = None if token is None else BearerToken(token)
        self._tls = None if tls is None else TlsFiles(tls)
        self._dialled = 0.0
        self._reloaded: ReloadedFile[Channel] | None = None

    def authorization(self) -> str | None:
        """Return the value of the `authorization` header for a call that starts now; `None` without a token.

        Raises:
            ServerRefused: the token's source failed, or it returned something that is not a token.
        """
        return None if self._token is None else self._token.authorization()

    @abstractmethod
    def _open(self, options: Options, credentials: grpc.ChannelCredentials | None) -> Channel:
        """Return a new channel; without credentials it sends plain text."""

    @abstractmethod
    def _retire(self, old: Channel | None, new: Channel) -> None:
        """Close a replaced channel, but let its calls end first."""

    def _reloaded_channel(self) -> ReloadedFile[Channel]:
        try:
            files = () if self._tls is None else self._tls.watched
            return ReloadedFile(files, self._dial, on_made=self._retire, on_broken=_warn, retry_seconds=_RETRY_SECONDS)
        except (OSError, ValueError) as error:
            if self._tls is not None:
                raise ServerUnreachable(f"the TLS files cannot be used ({problem(error)})") from error
            # The service config could not be read, for example because no file descriptor is free.
            raise ServerUnreachable(f"no connection can be made ({problem(error)})") from error

    def _may_be_replaced(self) -> bool:
        """Return whether the last channel is old enough to be replaced because it is unreachable."""
        return time.monotonic() - self._dialled >= _NEW_CHANNEL_SECONDS

    def _dial(self) -> Channel:
        options = [*_OPTIONS, *service_config.channel_options(), *(_OWN_CONNECTION if forked.is_fork() else ())]
        credentials = None
        if self._tls is None:
            options += _NO_PROXY
        else:
            if self._tls.server_name is not None:
                options.append(("grpc.ssl_target_name_override", self._tls.server_name))
            credentials = self._tls.credentials()
        channel = self._open(options, credentials)
        self._dialled = time.monotonic()
        return channel


def _warn(error: Exception) -> None:
    log.warning("the TLS files cannot be used (%s), the old ones stay in force", problem(error))
