"""The client for programs without an event loop: Flask, Celery, scripts.

It runs the code of `billing_grpc.client` on the thread of the caller.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from billing_grpc.catalogue import NameSet
from billing_grpc.client import ClientTls, TokenSource
from billing_grpc.client.blocking_calls import BlockingCalls, run
from billing_grpc.client.blocking_channel import BlockingDialer
from billing_grpc.client.calls import CallTerms
from billing_grpc.client.methods import ClientMethods
from billing_grpc.model import Catalogue

__all__ = ["BillingClient", "ClientTls", "TokenSource"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Item = TypeVar("Item")


def _blocking(
    method: Callable[Concatenate[ClientMethods, Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate["BillingClient", Arguments], Result]:
    """Return a method that returns when the coroutine has ended."""

    @wraps(method)
    def blocking(self: "BillingClient", /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return run(method(self._methods, *args, **kwargs))

    return blocking


def _iterating(
    method: Callable[Concatenate[ClientMethods, Arguments], AsyncGenerator[Item, None]],
) -> Callable[Concatenate["BillingClient", Arguments], Iterator[Item]]:
    """Return a method that returns an iterator."""

    @wraps(method)
    def iterating(self: "BillingClient", /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Iterator[Item]:
        return _each(method(self._methods, *args, **kwargs))

    return iterating


def _each(items: AsyncGenerator[Item, None]) -> Iterator[Item]:
    async def following() -> Item:
        return await anext(items)

    while True:
        try:
            item = run(following())
        except StopAsyncIteration:
            return
        yield item


class BillingClient:
    """Ask one server, for the lifetime of the application, from any thread.

    Arguments, methods and errors are those of `billing_grpc.client.BillingClient`. The client may be made and used before a
    fork: each process gets a connection of its own. In a fork of a process that used gRPC with asyncio, gRPC does not work:
    decisions then get the fallback with the reason CLIENT_MISUSED, and administration raises `ClientMisused`. On an event
    loop use the other client, because this one blocks the loop.
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
        calls = BlockingCalls(partial(BlockingDialer, target, token=token, tls=tls), CallTerms(timeout, metadata))
        self._methods = ClientMethods(calls, blocked_keys, extra_blocked_keys)

    resolve = _blocking(ClientMethods.resolve)
    resolve_many = _blocking(ClientMethods.resolve_many)
    validate_secret_write = _blocking(ClientMethods.validate_secret_write)
    plan_provision_env = _blocking(ClientMethods.plan_provision_env)
    get = _blocking(ClientMethods.get)
    set = _blocking(ClientMethods.set)
    inherit = _blocking(ClientMethods.inherit)
    changes = _iterating(ClientMethods.changes)
    workspaces = _iterating(ClientMethods.workspaces)
    summary = _blocking(ClientMethods.summary)
    close = _blocking(ClientMethods.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def catalogue(self) -> Catalogue:
        """Return the list of vendor names that this client blocks by itself."""
        return self._methods.catalogue
