"""Connect to a server: one channel, used again for every call, with credentials that may change in the meantime."""

import asyncio
import logging
import re
import time
from typing import Final

import grpc

from billing_grpc import __version__, service_config
from billing_grpc.client import forked
from billing_grpc.client.bearer_token import BearerToken, TokenSource
from billing_grpc.client.tls import ClientTls, TlsFiles, problem
from billing_grpc.errors import ClientMisused, ServerUnreachable
from billing_grpc.reloaded_file import ReloadedFile

# The application's own logging: this module lives in other people's processes.
log = logging.getLogger("billing_grpc.client")

_RETRY_SECONDS: Final = 1.0
"""Seconds between two reads of broken files that do not change: the cause may lie outside the files."""
_NEW_CHANNEL_SECONDS: Final = 1.0
"""Seconds between two replacements of an unreachable channel: gRPC repeats a failed name look-up at growing intervals."""
_OLD_CHANNEL_GRACE: Final = 30.0
"""Seconds that the calls of a replaced channel may still take."""

_LOCAL: Final = re.compile(
    r"unix(-abstract)?:[^,]*|(ipv4:|ipv6:|dns:|dns:///)?(localhost|127(\.[0-9]+){3}|\[::1\]):[0-9]+"
)
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

_TWO_LOOPS: Final = "this client is in use on another event loop that is still running: make one client for each loop"


def is_local(target: str) -> bool:
    """Return whether every address of a target is on this machine."""
    return all(_LOCAL.fullmatch(address) for address in target.split(","))


class Dialer:
    """A channel to one target, and the credentials of its calls.

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
        self._reloaded: ReloadedFile[grpc.aio.Channel] | None = None
        self._channel: grpc.aio.Channel | None = None
        self._dialled = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def channel(self) -> grpc.aio.Channel:
        """Return the channel to call on: a new one if a TLS file has changed.

        If the files are missing, half written or half renewed, the channel in use stays, and a warning is logged.

        Raises:
            ServerUnreachable: this dialer was closed, or the TLS files were never usable.
            ClientMisused: another event loop uses this dialer, or this process was forked after gRPC was used.
        """
        if self._closed:
            raise ServerUnreachable("this client was closed")
        self._use_this_loop()
        if self._reloaded is None:
            self._reloaded = self._first_channel()
        self._channel = self._reloaded.current()
        if self._is_unreachable(self._channel):
            self._reloaded.reload()
            self._channel = self._reloaded.current()
        return self._channel

    def authorization(self) -> str | None:
        """Return the value of the `authorization` header for a call that starts now; `None` without a token.

        Raises:
            ServerRefused: the token's source failed, or it returned something that is not a token.
        """
        return None if self._token is None else self._token.authorization()

    async def close(self) -> None:
        """Close the channel and end its calls. A later call raises `ServerUnreachable`.

        Wait for the calls of replaced channels, which cannot be ended from here. Do not touch a channel of another event
        loop.
        """
        self._closed = True
        if not self.is_usable_here():
            return
        channel, self._channel, self._reloaded = self._channel, None, None
        if channel is not None:
            await channel.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def is_usable_here(self) -> bool:
        """Return whether the channel belongs to the running event loop and to this process."""
        # The fork first: a child has no running loop.
        return not forked.grpc_belongs_to_parent() and self._loop is asyncio.get_running_loop()

    def _use_this_loop(self) -> None:
        """Drop the channel of an event loop that has ended: it does not work on another loop."""
        forked.use_grpc()
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise ClientMisused(_TWO_LOOPS)
        self._loop, self._channel, self._reloaded = loop, None, None
        self._closing.clear()

    def _is_unreachable(self, channel: grpc.aio.Channel) -> bool:
        if time.monotonic() - self._dialled < _NEW_CHANNEL_SECONDS:
            return False
        return channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def _first_channel(self) -> ReloadedFile[grpc.aio.Channel]:
        try:
            files = () if self._tls is None else self._tls.watched
            return ReloadedFile(files, self._dial, on_made=self._retire, on_broken=_warn, retry_seconds=_RETRY_SECONDS)
        except (OSError, ValueError) as error:
            raise ServerUnreachable(f"the TLS files cannot be used ({problem(error)})") from error

    def _retire(self, old: grpc.aio.Channel | None, new: grpc.aio.Channel) -> None:
        """Close a replaced channel, but let its calls end first."""
        del new
        if old is not None:
            task = asyncio.get_running_loop().create_task(old.close(_OLD_CHANNEL_GRACE))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _dial(self) -> grpc.aio.Channel:
        options = [*_OPTIONS, *service_config.channel_options()]
        if self._tls is None:
            options += _NO_PROXY
            channel = grpc.aio.insecure_channel(self.target, options=options)
        else:
            if self._tls.server_name is not None:
                options.append(("grpc.ssl_target_name_override", self._tls.server_name))
            channel = grpc.aio.secure_channel(self.target, self._tls.credentials(), options=options)
        self._dialled = time.monotonic()
        return channel


def _warn(error: Exception) -> None:
    log.warning("the TLS files cannot be used (%s), the old ones stay in force", problem(error))
