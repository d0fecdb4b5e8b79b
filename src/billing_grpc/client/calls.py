"""One call: its deadline, its credentials, its errors, and the one place where a decision without an answer is closed."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
from google.protobuf.message import Message
from prometheus_client import Counter

from billing_grpc import service_config
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.client import forked
from billing_grpc.client.channel import Dialer
from billing_grpc.client.status_errors import call_error
from billing_grpc.errors import (
    AnswerInvalid,
    BillingError,
    CallError,
    ClientMisused,
    RequestError,
    ServerRefused,
    ServerUnreachable,
    StorageError,
)
from billing_grpc.model import ResolutionError
from billing_grpc.wire import trace_context

# The application's own logging and metrics, not the service's: this module lives in other people's processes.
log = logging.getLogger("billing_grpc.client")

FALLBACK_ANSWERS: Final = Counter(
    "billing_grpc_client_closed_answers",
    "Decisions that were closed because no answer could be had or used, by method and reason.",
    ["method", "reason"],
)

MAX_TIMEOUT: Final = 3600.0
"""Seconds; always a deadline."""

_SLACK: Final = 0.5
"""Seconds past its deadline after which a call is given up that gRPC itself did not end, as in a process that was forked."""

_MIN_TIMEOUT: Final = 0.001
"""Seconds that a call gets when those before it have used up the decision's."""

_METADATA_KEY: Final = re.compile(r"(?!grpc-)[0-9a-z_.-]+")
_METADATA_TEXT: Final = re.compile(r"[ -~]*")
_OWN_KEYS: Final = frozenset({"authorization", "x-request-id"})

_MESSAGES: Final = {
    ServerUnreachable.reason: "the server cannot be reached, or did not answer in time; retry",
    ServerRefused.reason: "the server refused to answer; the caller's log says why",
    AnswerInvalid.reason: "the server's answer cannot be used; the caller's log says why",
}

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer", bound=Message)
Decision = TypeVar("Decision")
if TYPE_CHECKING:
    Stub = service_grpc.BillingModeServiceAsyncStub
else:
    # The same class serves both kinds of channel; only the type stubs tell them apart.
    Stub = service_grpc.BillingModeServiceStub


class Calls:
    """Makes the calls of one client.

    Args:
        dialer: the way to the server.
        timeout: seconds that a call may take; None for what the shipped service config says of its method.
        metadata: sent with every call.

    Raises:
        ValueError: metadata that gRPC would refuse at every call, or that is ours to send.
    """

    def __init__(self, dialer: Dialer, timeout: float | None, metadata: Sequence[tuple[str, str | bytes]] = ()) -> None:
        self._dialer = dialer
        self._timeout = timeout
        self._metadata = tuple(metadata)
        if wrong := [key for key, value in self._metadata if not _is_valid_metadata(key, value)]:
            raise ValueError(f"metadata: cannot be sent, or is the client's own to send: {wrong}")
        self._running: set[grpc.aio.Call] = set()

    async def close(self) -> None:
        """Ends the calls that run, and the way to the server; what is called afterwards finds it closed."""
        if self._dialer.is_usable_here():
            for each in list(self._running):
                each.cancel()
        await self._dialer.close()

    async def call(
        self,
        method: Callable[[Stub], grpc.aio.UnaryUnaryMultiCallable[Request, Answer]],
        name: str,
        request: Request,
        timeout: float | None = None,
        *,
        since: float | None = None,
    ) -> Answer:
        """What the server answers.

        Args:
            method: picks the method from a stub.
            name: the method's bare name.
            request: the request.
            timeout: seconds, instead of the client's.
            since: when the decision began that takes several calls, on the clock of `time.monotonic`: together they get
                the time of one.

        Raises:
            BillingError: there is no answer; as `call_errors.call_error` says.
            ValueError: a timeout that is none.
        """
        wanted = self._timeout if timeout is None else timeout
        seconds = service_config.timeout(name) if wanted is None else wanted
        if not 0 < seconds <= MAX_TIMEOUT:
            raise ValueError(f"timeout: must be more than 0 and at most {MAX_TIMEOUT} seconds; it is {seconds}")
        if since is not None:
            seconds = max(seconds - (time.monotonic() - since), _MIN_TIMEOUT)
        request_id = uuid.uuid4().hex
        metadata: list[tuple[str, str | bytes]] = [*self._metadata, ("x-request-id", request_id)]
        authorization = self._dialer.authorization()
        if authorization is not None:
            metadata.append(("authorization", authorization))
        asking = method(Stub(self._dialer.channel()))
        running = asking(request, timeout=seconds, metadata=tuple(trace_context.inject(metadata)))
        self._running.add(running)
        try:
            async with asyncio.timeout(seconds + _SLACK):
                answer = await running
        except grpc.aio.AioRpcError as error:
            failure = call_error(error)
            failure.add_note(f"request id {request_id}")
            raise failure from error
        except TimeoutError:
            raise forked.deadline_missed() from None
        except asyncio.CancelledError:
            # gRPC says the same when this task is cancelled and when the channel is closed under it.
            if _is_cancelled():
                raise
            raise ServerUnreachable("this client was closed during the call") from None
        finally:
            self._running.discard(running)
        # A message that does not parse comes as None, whatever the types say.
        if not isinstance(answer, Message):
            raise AnswerInvalid("the server's answer cannot be used: it is not a message of this method")
        return answer

    async def decide(
        self,
        name: str,
        ask: Callable[[], Awaitable[Decision]],
        fall_back: Callable[[ResolutionError], Decision],
        *,
        decisions: int = 1,
    ) -> Decision:
        """What `ask` answers, or else what `close` does. Raises nothing but the cancellation of its task.

        Args:
            name: the method's bare name.
            ask: makes the call and reads the answer.
            fall_back: returns the fallback for a reason.
            decisions: how many are closed at once without an answer.
        """
        try:
            return await ask()
        except Exception as error:  # noqa: BLE001 - a mistake of ours must close too; `fallback_error` logs it with its traceback
            return fall_back(fallback_error(name, error, decisions))


def fallback_error(name: str, error: Exception, decisions: int = 1) -> ResolutionError:
    """Why decisions are closed: logged in one line, each counted, and in the words that their caller gets."""
    reason = ServerRefused.reason
    if isinstance(error, StorageError):
        reason = ServerUnreachable.reason
    elif isinstance(error, CallError):
        reason = error.reason
    FALLBACK_ANSWERS.labels(method=name, reason=reason).inc(decisions)
    expected = isinstance(error, BillingError)
    log.warning(
        "%s: no answer that can be used, defaulting to platform_managed for safety: decisions=%d reason=%s error=%s: %s%s",
        name,
        decisions,
        reason,
        type(error).__name__,
        "".join(c if c.isprintable() else "?" for c in str(error)) if expected else "unexpected",
        "".join(f" ({note})" for note in getattr(error, "__notes__", ())),
        exc_info=None if expected else error,
        # For a program that tells its user why; the answer says only what may reach anybody.
        extra={"cause": error},
    )
    if isinstance(error, ClientMisused):
        return ResolutionError(reason, error.message)
    if isinstance(error, RequestError) and reason == ServerRefused.reason:
        # What the service says is meant for its callers; what gRPC says may name hosts, and stays in the log.
        return ResolutionError(reason, f"the server refused to answer: {error.message}")
    return ResolutionError(reason, _MESSAGES[reason])


def _is_valid_metadata(key: object, value: object) -> bool:
    if not isinstance(key, str) or not _METADATA_KEY.fullmatch(key) or key in _OWN_KEYS:
        return False
    if key.endswith("-bin"):
        return isinstance(value, bytes)
    return isinstance(value, str) and _METADATA_TEXT.fullmatch(value) is not None


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
