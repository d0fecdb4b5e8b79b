"""The way to a server: one channel that is used again, and credentials that may change while it is."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from billing_grpc import __version__, service_config
from billing_grpc.errors import ServerRefused, ServerUnreachable
from billing_grpc.watched_file import WatchedFile

_MAX_FILE_BYTES: Final = 1 << 20
_OLD_CHANNEL_GRACE: Final = 30.0
"""Seconds that calls on a channel with replaced certificates still get."""

_TOKEN: Final = re.compile(r"[!-~]+")
_LOCAL: Final = re.compile(
    r"unix(-abstract)?:[^,]*|(ipv4:|ipv6:|dns:|dns:///)?(localhost|127(\.[0-9]+){3}|\[::1\]):[0-9]+"
)
_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    # A server that restarts is found again within a second; by default the pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A peer that vanished is noticed while a call waits for it; the server allows a ping every ten seconds.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.primary_user_agent", f"billing-grpc-python/{__version__}"),
)


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


TokenSource = Path | Callable[[], str]
"""A file that holds a bearer token and may be replaced, or what returns the one to show now."""


class Dialer:
    """A channel to one target, and the metadata that its calls show."""

    def __init__(self, target: str, *, token: TokenSource | None, tls: ClientTls | None) -> None:
        """Connects to nothing yet.

        Raises:
            ValueError: the token would go over a network that anybody can read.
        """
        if token is not None and tls is None and not is_local(target):
            raise ValueError(f"a token is shown only over TLS or to this machine, and {target} is neither: give tls")
        self.target = target
        self._token = token
        self._token_file = WatchedFile(token, _MAX_FILE_BYTES) if isinstance(token, Path) else None
        self._shown = ""
        self._unread = ""
        self._tls = tls
        paths = () if tls is None else (tls.ca, tls.cert, tls.key)
        self._files = {path: WatchedFile(path, _MAX_FILE_BYTES) for path in paths if path is not None}
        self._channel: grpc.aio.Channel | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def channel(self) -> grpc.aio.Channel:
        """The channel to call on, made anew when a certificate has changed.

        Raises:
            ServerUnreachable: this dialer was closed, or there are no certificates that could be used yet.
        """
        if self._closed:
            raise ServerUnreachable("this client was closed")
        if self._channel is None or any(file.changed() for file in self._files.values()):
            self._renew()
        if self._channel is None:
            raise ServerUnreachable("there is no channel")
        return self._channel

    def authorization(self) -> str | None:
        """The value of the `authorization` header of a call that starts now; None without a token.

        Raises:
            ServerRefused: the token cannot be had, or is none.
        """
        if self._token is None:
            return None
        token = self._from_file(self._token_file) if self._token_file is not None else self._from_source()
        # Never repeated in a message, and never sent: gRPC would quote it when it refuses the header.
        if not _TOKEN.fullmatch(token):
            raise ServerRefused("the token is empty, or holds characters that no token has")
        return f"Bearer {token}"

    async def close(self) -> None:
        """Ends the calls that run and closes the channel; a later call finds it closed."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _from_file(self, file: WatchedFile) -> str:
        if file.changed():
            try:
                self._shown, self._unread = file.read().decode("ascii", "replace").strip(), ""
            except OSError as error:
                self._unread = f"the token file {file.path} cannot be read: {error.strerror}"
        # A file that is being replaced may be gone for a moment; the last token is then still the best.
        if self._unread and not self._shown:
            raise ServerRefused(self._unread)
        return self._shown

    def _from_source(self) -> str:
        try:
            return self._token()  # type: ignore[operator, misc]
        except Exception as error:
            raise ServerRefused("the token cannot be had: its source raised an error") from error

    def _renew(self) -> None:
        try:
            channel = self._dial()
        except OSError as error:
            if self._channel is None:
                raise ServerUnreachable(f"a TLS file cannot be read: {error.strerror}") from error
            return
        old, self._channel = self._channel, channel
        if old is not None:
            task = asyncio.get_running_loop().create_task(old.close(_OLD_CHANNEL_GRACE))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _dial(self) -> grpc.aio.Channel:
        options = [*_OPTIONS, *service_config.channel_options()]
        if self._tls is None:
            # A proxy of the environment would read what plain text is only allowed to say to this machine.
            options.append(("grpc.enable_http_proxy", 0))
            return grpc.aio.insecure_channel(self.target, options=options)
        ca, cert, key = (
            None if path is None else self._files[path].read() for path in (self._tls.ca, self._tls.cert, self._tls.key)
        )
        if self._tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        credentials = grpc.ssl_channel_credentials(ca, key, cert)
        return grpc.aio.secure_channel(self.target, credentials, options=options)
