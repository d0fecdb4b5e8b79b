"""The client: decisions that never raise, and administration that raises typed errors.

Every call has a deadline, and is retried as the shipped service config says.
"""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from billing_grpc.catalogue import NameSet
from billing_grpc.client.asyncio_calls import AsyncioCalls
from billing_grpc.client.bearer_token import TokenSource
from billing_grpc.client.calls import CallTerms
from billing_grpc.client.channel import Dialer
from billing_grpc.client.methods import ClientMethods
from billing_grpc.client.tls import ClientTls


class BillingClient(ClientMethods):
    """Ask one server, for the lifetime of the application.

    A client works on one event loop at a time; when that loop has ended, it connects anew on the next. While its loop runs,
    a call on another loop is an error. So is a call without a loop of asyncio, under gevent or eventlet, and in a process
    that was forked after a client of this kind was used: decisions then get the fallback with the reason CLIENT_MISUSED,
    and administration raises `ClientMisused`. For such programs there is `billing_grpc.sync`.

    Args:
        target: as gRPC takes it: `host:port`, `unix:/path`, `dns:///name:port`.
        token: a file that holds a bearer token, or a callable that returns one; read at every call, so that tokens rotate.
        tls: the TLS files; `None` for plain text, over which a token is sent to this machine only.
        blocked_keys: the set of the catalogue that the server blocks: `core`, `agents` or `vendors`. The client uses its own
            copy of it when it has no answer, and strips it in addition to the server's.
        extra_blocked_keys: names that the server's configuration adds to that set.
        timeout: seconds that a call may take; `None` for the timeout of the shipped service config (5).
        metadata: sent with every call; bytes under a key that ends in `-bin`.

    Raises:
        ValueError: a token without TLS for another machine, an unknown set, a malformed key, a timeout out of range, or
            metadata that gRPC would refuse or that the client sends itself.
        TypeError: the token is neither a path nor a callable.
    """

    def __init__(
        self,
        target: str,
        *,
        token: TokenSource | None = None,
        tls: ClientTls | None = None,
        blocked_keys: str = NameSet.AGENTS,
        extra_blocked_keys: Iterable[str] = (),
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> None:
        calls = AsyncioCalls(Dialer(target, token=token, tls=tls), CallTerms(timeout, metadata))
        super().__init__(calls, blocked_keys, extra_blocked_keys)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
