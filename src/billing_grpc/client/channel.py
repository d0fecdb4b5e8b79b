"""Connect to a server from an event loop: one channel, used again for every call while the loop runs."""

import asyncio
import threading
from types import BuiltinFunctionType
from typing import Final

import grpc

from billing_grpc.client import forked
from billing_grpc.client.bearer_token import TokenSource
from billing_grpc.client.endpoint import Endpoint, Options
from billing_grpc.client.tls import ClientTls
from billing_grpc.errors import ClientMisused, ServerUnreachable

_OLD_CHANNEL_GRACE: Final = 30.0
"""Seconds that the calls of a replaced channel may still take."""

_NO_LOOP: Final = (
    "this client works on an event loop of asyncio, and none is running here: under trio and without a loop, use"
    " billing_grpc.sync"
)
_GREENLETS: Final = (
    "gevent or eventlet has replaced the threads of this process, and gRPC would block it for ever with asyncio: use"
    " billing_grpc.sync"
)
_TWO_LOOPS: Final = "this client is in use on another event loop that is still running: make one client for each loop"


class Dialer(Endpoint[grpc.aio.Channel]):
    """A channel to one server, for one event loop at a time.

    Arguments and errors are those of `Endpoint`.
    """

    def __init__(self, target: str, *, token: TokenSource | None, tls: ClientTls | None) -> None:
        super().__init__(target, token=token, tls=tls)
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def channel(self) -> grpc.aio.Channel:
        """Return the channel to call on: a new one if a TLS file has changed.

        If the files are missing, half written or half renewed, the channel in use stays, and a warning is logged.

        Raises:
            ServerUnreachable: this dialer was closed, or the TLS files were never usable.
            ClientMisused: no event loop runs here, or another one uses this dialer, or gRPC does not work in this process.
        """
        if self._closed:
            raise ServerUnreachable("this client was closed")
        self._use_this_loop()
        if self._reloaded is None:
            self._reloaded = self._reloaded_channel()
        self._channel = self._reloaded.current()
        if self._is_unreachable(self._channel):
            self._reloaded.reload()
            self._channel = self._reloaded.current()
        return self._channel

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
        try:
            return self._loop is require_loop() and not forked.belongs_to_parent()
        except ClientMisused:
            return False

    def _use_this_loop(self) -> None:
        """Drop the channel of an event loop that has ended: it does not work on another loop."""
        loop = require_loop()
        # gRPC polls on a thread. As a greenlet, it would stop the whole process; no deadline would end that.
        if not isinstance(threading.get_ident, BuiltinFunctionType):
            raise ClientMisused(_GREENLETS)
        forked.use_asyncio()
        if self._loop is loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise ClientMisused(_TWO_LOOPS)
        self._loop, self._channel, self._reloaded = loop, None, None
        self._closing.clear()

    def _is_unreachable(self, channel: grpc.aio.Channel) -> bool:
        return self._may_be_replaced() and channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def _open(self, options: Options, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        return grpc.aio.secure_channel(self.target, credentials, options=options)

    def _retire(self, old: grpc.aio.Channel | None, new: grpc.aio.Channel) -> None:
        """Close a replaced channel, but let its calls end first."""
        del new
        if old is not None:
            task = asyncio.get_running_loop().create_task(old.close(_OLD_CHANNEL_GRACE))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def require_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that runs here.

    Raises:
        ClientMisused: none does.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ClientMisused(_NO_LOOP) from None
