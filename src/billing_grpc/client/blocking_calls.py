"""Make a client's calls on the thread of the caller, in any process."""

import os
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar, cast

import grpc

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.client import forked
from billing_grpc.client.blocking_channel import BlockingDialer
from billing_grpc.client.calls import SLACK, Answer, Calls, CallTerms, Request, Stub, require_message
from billing_grpc.client.status_errors import call_error
from billing_grpc.errors import ServerUnreachable

Result = TypeVar("Result")


class BlockingCalls(Calls):
    """The calls of one client from any thread. Its coroutines never wait for an event loop: `run` runs them.

    A process that was forked gets a connection of its own. Until a call has ended in it, its calls run on threads of their
    own, and are abandoned if gRPC hangs.

    Args:
        dial: returns the connection to the server for one process.
        terms: the deadline and the metadata of each call.
    """

    def __init__(self, dial: Callable[[], BlockingDialer], terms: CallTerms) -> None:
        self._dial = dial
        self.terms = terms
        # Never empty: in a fork the parent's dialer may not be touched, and its locks may be held.
        self._dialers = {os.getpid(): dial()}
        self._closed = False

    async def call(
        self,
        method: Callable[[Stub], grpc.aio.UnaryUnaryMultiCallable[Request, Answer]],
        name: str,
        request: Request,
        timeout: float | None = None,
        *,
        since: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        seconds = self.terms.seconds(name, timeout, since)
        if self._closed:
            raise ServerUnreachable("this client was closed")
        forked.require_usable()
        dialer = self._dialer()
        request_id = uuid.uuid4().hex
        sent = self.terms.metadata(request_id, dialer.authorization(), metadata)

        def ask(left: float) -> Answer:
            with dialer.line() as line:
                # The same class serves both kinds of channel; only the type stubs tell them apart.
                chosen = method(cast("Stub", service_grpc.BillingModeServiceStub(line.channel)))
                invoke = cast("grpc.UnaryUnaryMultiCallable[Request, Answer]", chosen)
                try:
                    answer = invoke(request, timeout=left, metadata=sent)
                except grpc.RpcError as error:
                    forked.note_end_of_call()
                    failure = call_error(error, name)
                    line.unreachable = (
                        isinstance(failure, ServerUnreachable) and error.code() is grpc.StatusCode.UNAVAILABLE
                    )
                    failure.add_note(f"request id {request_id}")
                    raise failure from error
                except ValueError:
                    if not self._closed:
                        raise
                    raise ServerUnreachable("this client was closed during the call") from None
                forked.note_end_of_call()
                line.unreachable = False
                return require_message(answer)

        with forked.blocking_call(seconds) as left:
            return _bounded(partial(ask, left), left + SLACK) if forked.is_doubtful() else ask(left)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - the caller's thread waits; there is no event loop

    async def close(self) -> None:
        self._closed = True
        self._dialer().close()

    def _dialer(self) -> BlockingDialer:
        """Return the dialer of this process."""
        pid = os.getpid()
        return self._dialers.get(pid) or self._dialers.setdefault(pid, self._dial())


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine of a client with `BlockingCalls` to its end, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("Result", end.value)
    coroutine.close()
    raise RuntimeError("a call without an event loop waited for one")


def _bounded(act: Callable[[], Result], seconds: float) -> Result:
    """Return what `act` returns within these seconds; abandon it after that.

    Raises:
        ClientMisused: it has not ended.
    """
    outcome: Future[Result] = Future()

    def act_and_tell() -> None:
        try:
            outcome.set_result(act())
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            outcome.set_exception(error)

    threading.Thread(target=act_and_tell, daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        if outcome.done():
            return outcome.result()
        forked.note_overdue_call()
        raise forked.deadline_missed() from None
