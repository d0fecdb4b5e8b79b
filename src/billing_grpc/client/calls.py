"""The role that makes a client's calls, and what every call needs: its deadline and its metadata."""

import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from billing_grpc import service_config
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.client.trace_headers import inject
from billing_grpc.errors import AnswerInvalid
from billing_grpc.wire.metadata import AUTHORIZATION, REQUEST_ID

WorkspaceId = str | uuid.UUID
NO_WORKSPACE: Final = ""
"""The id of a workspace that does not exist yet."""

SLACK: Final = 0.5
"""Seconds after its deadline until a call is abandoned that gRPC did not end, as happens in a forked process."""

_MAX_TIMEOUT: Final = 3600.0
"""The longest timeout of a call, in seconds."""

_MIN_TIMEOUT: Final = 0.001
"""Seconds for a call of a decision whose earlier calls have used up its time."""

_METADATA_KEY: Final = re.compile(r"(?!grpc-)[0-9a-z_.-]+")
_METADATA_TEXT: Final = re.compile(r"[ -~]*")
_OWN_KEYS: Final = frozenset({AUTHORIZATION, REQUEST_ID})

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer", bound=Message)
ListRequest = TypeVar(
    "ListRequest", bound=service_pb.ListBillingModeChangesRequest | service_pb.ListWorkspaceBillingModesRequest
)
Page = TypeVar("Page", bound=service_pb.ListBillingModeChangesResponse | service_pb.ListWorkspaceBillingModesResponse)
if TYPE_CHECKING:
    Stub = service_grpc.BillingModeServiceAsyncStub
else:
    # The same class serves both kinds of channel; only the type stubs tell them apart.
    Stub = service_grpc.BillingModeServiceStub


class Calls(Protocol):
    """Make the calls of one client, on an event loop or on the thread of the caller.

    Everything that a client awaits is here, so the client's other coroutines run without an event loop if these do.

    Attributes:
        terms: the deadline and the metadata of each call.
    """

    terms: "CallTerms"

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
        """Return the server's answer.

        Args:
            method: picks the method from a stub.
            name: the method's bare name.
            request: the request.
            timeout: seconds, instead of the client's.
            since: when a decision of several calls began, on the clock of `time.monotonic`: all its calls share one timeout.
            metadata: sent with this call, in place of the client's own under the same keys.

        Raises:
            BillingError: there is no usable answer; see `status_errors.call_error`.
            ValueError: the timeout is out of range.
        """

    async def pause(self, seconds: float) -> None:
        """Wait between two attempts.

        Raises:
            ClientMisused: no event loop runs here, and this client needs one.
        """

    async def close(self) -> None:
        """End the running calls and the connection. Later calls raise `ServerUnreachable`."""


class CallTerms:
    """The deadline and the metadata of each call of one client.

    Args:
        timeout: seconds that a call may take; `None` for the method's timeout in the shipped service config.
        metadata: sent with every call.

    Raises:
        ValueError: the timeout is out of range, or gRPC would refuse the metadata, or the client sends that key itself.
    """

    def __init__(self, timeout: float | None, metadata: Sequence[tuple[str, str | bytes]] = ()) -> None:
        self._timeout = None if timeout is None else _require_timeout(timeout)
        self._metadata = tuple(metadata)
        if wrong := [key for key, value in self._metadata if not _is_valid_metadata(key, value)]:
            raise ValueError(f"metadata: these keys or their values cannot be sent, or the client sends them: {wrong}")

    def metadata(
        self, request_id: str, authorization: str | None, own: Sequence[tuple[str, str]] = ()
    ) -> tuple[tuple[str, str | bytes], ...]:
        """Return the metadata of a call that starts now; `own` is that of `Calls.call`."""
        replaced = dict(own)
        sent: list[tuple[str, str | bytes]] = [each for each in self._metadata if each[0] not in replaced]
        sent += [*replaced.items(), (REQUEST_ID, request_id)]
        if authorization is not None:
            sent.append((AUTHORIZATION, authorization))
        return tuple(inject(sent))

    def seconds(self, name: str, timeout: float | None, since: float | None = None) -> float:
        """Return how many seconds a call may take; the arguments are those of `Calls.call`."""
        wanted = self._timeout if timeout is None else timeout
        seconds = _require_timeout(service_config.timeout(name) if wanted is None else wanted)
        return seconds if since is None else max(seconds - (time.monotonic() - since), _MIN_TIMEOUT)


async def pages(
    calls: Calls,
    method: Callable[[Stub], grpc.aio.UnaryUnaryMultiCallable[ListRequest, Page]],
    name: str,
    request: ListRequest,
) -> AsyncGenerator[Page, None]:
    """Yield the pages of a list, each fetched when it is needed; `request` asks for the first one and is changed.

    The other arguments are those of `Calls.call`.

    Raises:
        BillingError: as `Calls.call`; `AnswerInvalid` also if the pages lead back to an earlier one.
    """
    seen: set[str] = set()
    while True:
        page = await calls.call(method, name, request)
        yield page
        if not page.next_page_token:
            return
        if page.next_page_token in seen:
            raise AnswerInvalid("the server's answer cannot be used: it leads back to an earlier page")
        seen.add(page.next_page_token)
        request.page_token = page.next_page_token


def require_message(answer: Answer) -> Answer:
    """Return the answer; raise `AnswerInvalid` for the `None` that gRPC returns if a message does not parse."""
    if not isinstance(answer, Message):
        raise AnswerInvalid("the server's answer cannot be used: it is not a message of this method")
    return answer


def _require_timeout(seconds: float) -> float:
    if not 0 < seconds <= _MAX_TIMEOUT:
        raise ValueError(f"timeout: must be more than 0 and at most {_MAX_TIMEOUT} seconds; it is {seconds}")
    return seconds


def _is_valid_metadata(key: object, value: object) -> bool:
    if not isinstance(key, str) or not _METADATA_KEY.fullmatch(key) or key in _OWN_KEYS:
        return False
    if key.endswith("-bin"):
        return isinstance(value, bytes)
    return isinstance(value, str) and _METADATA_TEXT.fullmatch(value) is not None
