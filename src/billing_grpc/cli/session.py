"""Open a client for a command, and turn each error into one line and an exit code."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from billing_grpc.cli import exit_codes, json_output
from billing_grpc.cli.options import Connection
from billing_grpc.client import BillingClient, ClientTls
from billing_grpc.errors import (
    AnswerInvalid,
    BillingError,
    CallError,
    ClientMisused,
    EtagStale,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    RequestError,
    ServerRefused,
    ServerUnreachable,
    StorageError,
    Unauthenticated,
    shown_notes,
)
from billing_grpc.model import Catalogue, Resolution, ResolutionError, WorkspaceBillingMode

_AS_USAGE: Final = (InvalidArgument,)
_AS_UNAVAILABLE: Final = (StorageError, ServerUnreachable, AnswerInvalid, Overloaded)
_UNKNOWN_OUTCOME: Final = (StorageError, ServerUnreachable, AnswerInvalid)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Session:
    """A client, while a command runs.

    Attributes:
        client: the client.
        run: runs a coroutine to its end and returns its result.
        causes: the errors behind the client's fallbacks so far, the newest last.
        address: the server's address, as given.
    """

    client: BillingClient
    run: Callable[[Coroutine[Any, Any, Value]], Value]
    causes: list[BaseException]
    address: str

    def why_fallback(self, error: ResolutionError) -> str:
        """Return why an answer is the fallback, and the remedy if it is known."""
        if self.causes and error.reason in _CLIENT_REASONS:
            return describe(self.causes[-1], self.address)
        return f"{error.reason}: {error.message}"

    def warn(self, resolution: Resolution) -> None:
        """Print to standard error why an answer is the fallback, if it is."""
        if resolution.error is not None:
            exit_codes.print_error(
                f"no answer, taken as {resolution.mode} for safety: {self.why_fallback(resolution.error)}"
            )

    def warn_of_catalogue(self, theirs: Catalogue | None) -> None:
        """Print to standard error that the server blocks other names than this command, if it does."""
        own = self.client.catalogue
        if theirs is None or theirs.digest != own.digest:
            judged = "does not say which names it blocks" if theirs is None else f"blocks other names ({theirs})"
            exit_codes.print_error(
                f"the server {judged}; this command also strips its own ({own}): see --blocked-keys, --extra-blocked-key"
            )


_CLIENT_REASONS: Final = frozenset(
    each.reason for each in (ServerUnreachable, ServerRefused, AnswerInvalid, ClientMisused)
)


class _Causes(logging.Handler):
    """Collect the errors behind the client's fallbacks, which only its log records hold."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        cause = getattr(record, "cause", None)
        if isinstance(cause, BaseException):
            self.seen.append(cause)


@contextmanager
def open_session(connection: Connection, *, files: bool = True, writes: bool = False) -> Iterator[Session]:
    """Yield a session with the server.

    Args:
        connection: the server and how to reach it.
        files: an unreadable file is a usage error; otherwise it makes the client fall back.
        writes: whether the command writes, so that an error can leave the outcome unknown.

    Raises:
        exit_codes.Failed: for every error of `errors`.
        UsageError: the connection's options contradict each other.
    """
    if files:
        check_files(connection)
    client, causes = make_client(connection), _collect_causes()
    with asyncio.Runner() as runner:
        try:
            yield Session(client, runner.run, causes, connection.address)
        except BillingError as error:
            message = describe(error, connection.address)
            if writes and isinstance(error, _UNKNOWN_OUTCOME):
                message += "; the outcome is unknown: repeat the command"
            raise exit_codes.Failed(message, exit_code(error)) from error
        finally:
            runner.run(client.close())


def check_files(connection: Connection) -> None:
    """Check that the connection's files can be read.

    Raises:
        BadParameter: one cannot be read.
    """
    for option, path in connection.files.items():
        try:
            readable = path.is_file() and os.access(path, os.R_OK)
        except OSError:
            # The folder may be inaccessible, or the name too long.
            readable = False
        if not readable:
            raise click.BadParameter(f"{path} cannot be read as a file", param_hint=f"'{option}'")


def make_client(connection: Connection) -> BillingClient:
    """Return a client for this connection.

    Raises:
        UsageError: its options contradict each other.
    """
    try:
        return BillingClient(
            connection.target,
            token=connection.token_file,
            tls=client_tls(connection),
            blocked_keys=connection.blocked_keys,
            extra_blocked_keys=connection.extra_blocked_key,
            timeout=connection.timeout,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def client_tls(connection: Connection) -> ClientTls | None:
    """Return the TLS files; `None` for plain text."""
    if not connection.secure:
        return None
    return ClientTls(connection.ca, connection.cert, connection.key, connection.server_name)


def exit_code(error: BillingError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, _AS_USAGE):
        return exit_codes.USAGE
    return exit_codes.UNAVAILABLE if isinstance(error, _AS_UNAVAILABLE) else exit_codes.REFUSED


def describe(error: BaseException, address: str) -> str:
    """Return one line: what happened, and the remedy."""
    match error:
        case Unauthenticated():
            remedy = f"give --token-file, or --cert and --key{shown_notes(error)}"
            return f"{error.reason}: {address} does not know this caller: {remedy}"
        case PermissionDenied():
            return f"{error.reason}: {error}; use a token of a role that may{shown_notes(error)}"
        case EtagStale(attachments=[WorkspaceBillingMode() as now]):
            return f"{error.reason}: {error}; {_state(now)}"
        case ServerUnreachable():
            return f"{error.reason}: {error}; is a server listening on {address}, and with TLS if --ca is given?"
        case RequestError(reason=reason) | CallError(reason=reason):
            return f"{reason}: {error}"
    return f"{type(error).__name__}: {error}"


def _state(now: WorkspaceBillingMode) -> str:
    by = f", changed by {now.updated_by} at {moment(now)}" if now.update_time else ""
    return f"it is now {now.resolution.mode} ({now.resolution.source}){by}; etag {now.etag}"


def moment(now: WorkspaceBillingMode) -> str:
    """Return when the override last changed; empty if no change is recorded."""
    return "" if now.update_time is None else json_output.time(now.update_time)


def _collect_causes() -> list[BaseException]:
    handler = _Causes()
    log = logging.getLogger("billing_grpc.client")
    log.addHandler(handler)
    log.propagate = False
    return handler.seen
