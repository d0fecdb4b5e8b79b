"""The way to a server: one channel that is used again, and credentials that may change while it is."""

import asyncio
import logging
import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from billing_grpc import __version__, service_config
from billing_grpc.client import forked
from billing_grpc.client.bearer_token import BearerToken, TokenSource
from billing_grpc.errors import ClientMisused, ServerUnreachable
from billing_grpc.watched_file import WatchedFile

# The application's own logging: this module lives in other people's processes.
log = logging.getLogger("billing_grpc.client")

_MAX_FILE_BYTES: Final = 1 << 20
_TRIES: Final = 3
"""How often files that are being replaced just now are read again before they count as broken."""
_RETRY_SECONDS: Final = 1.0
"""How often files that were found broken are looked at again: what was wrong may not have been in them."""
_NEW_CHANNEL_SECONDS: Final = 1.0
"""How often a channel that reaches nobody is replaced: gRPC looks a name that was missing up at growing pauses."""
_OLD_CHANNEL_GRACE: Final = 30.0
"""Seconds that calls on a channel with replaced certificates still get."""

_LOCAL: Final = re.compile(
    r"unix(-abstract)?:[^,]*|(ipv4:|ipv6:|dns:|dns:///)?(localhost|127(\.[0-9]+){3}|\[::1\]):[0-9]+"
)
_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    # A server that restarts is found again within a second; by default the pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The name of a server that was replaced is looked up again when a connection fails; by default at most every 30 seconds.
    ("grpc.dns_min_time_between_resolutions_ms", 500),
    # A peer that vanished is noticed while a call waits for it; the server allows a ping every ten seconds.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.primary_user_agent", f"billing-grpc-python/{__version__}"),
)
# A proxy of the environment would read what plain text is only allowed to say to this machine: `grpc_proxy`, `https_proxy`
# and `http_proxy` are the first option's, GRPC_ADDRESS_HTTP_PROXY the second's.
_NO_PROXY: Final[tuple[tuple[str, str | int], ...]] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.address_http_proxy_enabled_addresses", ""),
)

_TWO_LOOPS: Final = "this client is in use on another event loop, which is running: make a client for each loop"


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How to know a server, and how to be known by it. The files are read again when they change.

    Attributes:
        ca: the authorities that sign servers' certificates, PEM; None for gRPC's own roots.
        cert: our certificate chain, PEM, for a listener that requires one; with `key`.
        key: its key, PEM.
        server_name: the name that the server's certificate is for, where it is not the host that is dialled.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: a certificate without its key, or the other way round."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client certificate needs its key, and the key its certificate: give both")


def is_local(target: str) -> bool:
    """Whether each address of a target is one of this machine."""
    return all(_LOCAL.fullmatch(address) for address in target.split(","))


class Dialer:
    """A channel to one target, and the metadata that its calls show."""

    def __init__(self, target: str, *, token: TokenSource | None, tls: ClientTls | None) -> None:
        """Connects to nothing yet.

        Raises:
            ValueError: the token would go over a network that anybody can read.
            TypeError: the token's source is neither a path nor a callable; a text is not taken for either.
        """
        if token is not None and tls is None and not is_local(target):
            raise ValueError(f"a token is shown only over TLS or to this machine, and {target} is neither: give tls")
        self.target = target
        self._token = None if token is None else BearerToken(token)
        self._tls = tls
        paths = () if tls is None else (tls.ca, tls.cert, tls.key)
        self._files = {path: WatchedFile(path, _MAX_FILE_BYTES) for path in paths if path is not None}
        self._channel: grpc.aio.Channel | None = None
        self._broken_since: float | None = None
        self._dialled = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def channel(self) -> grpc.aio.Channel:
        """The channel to call on, made anew when a certificate has changed.

        Files that are missing, half written or half renewed change nothing where there is a channel already, and are logged.

        Raises:
            ServerUnreachable: this dialer was closed, or there are no certificates that could be used yet.
            ClientMisused: another event loop uses it, or gRPC was used before this process was forked.
        """
        if self._closed:
            raise ServerUnreachable("this client was closed")
        self._use_this_loop()
        broken = self._broken_since is not None and time.monotonic() - self._broken_since >= _RETRY_SECONDS
        changed = any(file.changed() for file in self._files.values())
        if self._channel is None or broken or changed or self._is_unreachable(self._channel):
            self._renew()
        if self._channel is None:
            raise ServerUnreachable("there is no channel")
        return self._channel

    def authorization(self) -> str | None:
        """The value of the `authorization` header of a call that starts now; None without a token.

        Raises:
            ServerRefused: the token cannot be had, or is none.
        """
        return None if self._token is None else self._token.authorization()

    async def close(self) -> None:
        """Closes the channel and ends its calls; a later call finds it closed.

        Waits for calls on channels with replaced certificates, which cannot be ended from here. A channel of another event
        loop is left to that.
        """
        self._closed = True
        if not self.is_usable_here():
            return
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def is_usable_here(self) -> bool:
        """Whether the channel, if there is one, is of the running event loop and of this process."""
        return self._loop is asyncio.get_running_loop() and not forked.grpc_belongs_to_parent()

    def _use_this_loop(self) -> None:
        """Leave a channel behind whose event loop has ended: it cannot be used on another."""
        forked.use_grpc()
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise ClientMisused(_TWO_LOOPS)
        self._loop, self._channel = loop, None
        self._closing.clear()

    def _is_unreachable(self, channel: grpc.aio.Channel) -> bool:
        if time.monotonic() - self._dialled < _NEW_CHANNEL_SECONDS:
            return False
        return channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def _renew(self) -> None:
        try:
            channel = self._dial()
        except (OSError, ValueError) as error:
            self._broken_since = time.monotonic()
            why = f"the TLS files cannot be used ({_problem(error)})"
            if self._channel is None:
                raise ServerUnreachable(why) from error
            log.warning("%s, the old ones stay in force", why)
            return
        self._broken_since = None
        self._dialled = time.monotonic()
        old, self._channel = self._channel, channel
        if old is not None:
            task = asyncio.get_running_loop().create_task(old.close(_OLD_CHANNEL_GRACE))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _dial(self) -> grpc.aio.Channel:
        options = [*_OPTIONS, *service_config.channel_options()]
        if self._tls is None:
            options += _NO_PROXY
            return grpc.aio.insecure_channel(self.target, options=options)
        if self._tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        credentials = grpc.ssl_channel_credentials(*self._pem(self._tls))
        return grpc.aio.secure_channel(self.target, credentials, options=options)

    def _pem(self, tls: ClientTls) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The contents of the authorities', the key's and the certificate's file, which belong together.

        gRPC itself looks at none of it: it fails every handshake of a key that is another certificate's, trusts its own
        roots where there are no authorities, and ends the whole process over an empty certificate or key.
        """
        for _ in range(_TRIES):
            ca, key, cert = (
                None if path is None else _text(self._files[path].read()) for path in (tls.ca, tls.key, tls.cert)
            )
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if ca is not None:
                # OpenSSL's binding takes ASCII only; a comment between certificates may be anything.
                context.load_verify_locations(cadata=ca.decode("ascii", "replace").replace("\ufffd", "?"))
            if tls.cert is not None:
                # An encrypted key is refused; without this OpenSSL would ask for the password, and wait.
                context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
            # That has opened two of the files itself: only if they are still the same were these bytes checked.
            if not any(file.changed() for file in self._files.values()):
                return ca, key, cert
        raise ValueError("they change all the time")


def _text(content: bytes) -> bytes:
    """The content of a PEM file; gRPC would read it to the first NUL, and OpenSSL past it."""
    if b"\0" in content:
        raise ValueError("one of them holds a NUL")
    return content


def _problem(error: Exception) -> str:
    """What is wrong, without what a file holds."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "not PEM"
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
