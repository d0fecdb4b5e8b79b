"""All errors of the service, in one tree.

    BillingError
    ├── RequestError                  becomes a gRPC status
    │   ├── InvalidArgument           the request is wrong and will stay wrong
    │   ├── WorkspaceNotFound         there is no such workspace
    │   ├── EtagStale                 the workspace changed since the etag was read
    │   ├── Unauthenticated           the caller's credentials are missing or unknown
    │   ├── PermissionDenied          the caller's role may not call the method
    │   ├── Overloaded                too many calls at once
    │   ├── WriteUndone               the database changed or dropped the write, which was rolled back
    │   │   ├── WriteNotApplied       a rule or a trigger left another state than the one asked for
    │   │   └── ChangeNotRecorded     the change log holds no entry of the change
    │   └── StorageError              the database could not be asked
    │       ├── DatabaseUnreachable   refused, reset, shut down, failing over
    │       ├── DatabaseTimeout       no answer, or no free connection, within the call's budget
    │       ├── DatabaseStale         a standby, a replica or a read-only server: its values may be old
    │       ├── SchemaNotReady        the migrations were not run
    │       ├── DatabaseDenied        the database role lacks a right, or the credentials are wrong
    │       └── ValueUnreadable       the answer could not be decoded
    ├── CallError                     the client has no usable answer; never sent by a server
    │   ├── ServerUnreachable         no connection, no answer in time, or the call was cut short
    │   ├── ServerRefused             the server, or a proxy, refused the call
    │   ├── AnswerInvalid             unknown, garbled or contradictory, or the answer to a write was cut short
    │   └── ClientMisused             the client was used where it cannot work; nothing was sent
    └── StartupError                  the process cannot start; never reaches a client
        ├── SettingsError             the settings are wrong, all of them listed
        ├── CatalogueError            the catalogue of vendor names is wrong, every problem listed
        ├── ListenError               an address cannot be listened on
        ├── MigrationError            the schema could not be changed
        └── EmbeddedPostgresError     the embedded database could not be started

The message of a `RequestError` is sent to the client. It holds constant text, field names and at most 64 characters of the
client's own text.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final

SHOWN_CLIENT_TEXT: Final = 64
"""The largest number of characters of a client's text in a message."""


def printable(text: str) -> str:
    """Return a text with a question mark for each character that cannot be shown, such as a line break."""
    return "".join(c if c.isprintable() else "?" for c in text)


def quoted(text: str) -> str:
    """Return a client's text for a message: in quotes, cut to 64 characters, without control characters."""
    shown = printable(text[:SHOWN_CLIENT_TEXT])
    return f'"{shown}{"..." if len(text) > SHOWN_CLIENT_TEXT else ""}"'


def shown_notes(error: BaseException) -> str:
    """Return the notes of an error for the end of a message: each after a space and in parentheses."""
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


class BillingError(Exception):
    """The base class of all errors that this package raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # By default, pickle calls the class with `args`, which most classes here do not take. If a task's error cannot be
        # unpickled, its pool of processes breaks or waits for ever.
        return _without_init, (type(self), self.args), self.__dict__


def _without_init(kind: type[BillingError], args: tuple[object, ...]) -> BillingError:
    return kind.__new__(kind, *args)


class RequestError(BillingError):
    """A call fails with a gRPC status; `reason` and the message are public contract.

    Attributes:
        reason: the UPPER_SNAKE reason of the contract, sent as `google.rpc.ErrorInfo.reason`.
        message: a sentence that is safe to send to a client.
        attachments: values of `model` that are sent as status details.
    """

    reason: str = ""

    def __init__(self, message: str, *, attachments: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.attachments = attachments


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One invalid field of a request.

    Attributes:
        field: the path of the field, such as `secret_keys[3]`.
        description: the problem and the remedy.
    """

    field: str
    description: str


class InvalidArgument(RequestError):
    """The request is invalid, and repeating it does not help. Names each invalid field and the remedy."""

    def __init__(self, reason: str, *violations: FieldViolation) -> None:
        shown = [f"{violation.field}: {violation.description}" for violation in violations[:1]]
        if len(violations) > 1:
            shown.append("also " + ", ".join(violation.field for violation in violations[1:]))
        super().__init__("; ".join(shown))
        self.reason = reason
        self.violations = violations


class WorkspaceNotFound(RequestError):
    """There is no workspace with this id."""

    reason = "WORKSPACE_NOT_FOUND"


class EtagStale(RequestError):
    """The workspace's override changed since the caller read its etag. The current state is attached."""

    reason = "ETAG_STALE"


class Unauthenticated(RequestError):
    """The credentials of the call are missing or not accepted. The message is constant and does not say why."""

    reason = "CREDENTIALS_INVALID"

    def __init__(self) -> None:
        super().__init__("no valid credentials: send 'authorization: Bearer TOKEN', or a client certificate known here")


class PermissionDenied(RequestError):
    """The role of the caller may not call this method. The message is constant."""

    reason = "ROLE_DENIED"

    def __init__(self) -> None:
        super().__init__("this caller's role may not call this method")


class Overloaded(RequestError):
    """The server already runs as many calls as its settings allow."""

    reason = "OVERLOADED"

    def __init__(self) -> None:
        super().__init__("too many calls at once; retry after a pause")


class WriteUndone(RequestError):
    """The database did not do what the write asked for. The transaction was rolled back, so nothing changed.

    Repeating the call does not help until an operator has changed the database. The message is constant.
    """

    public_message: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__(self.public_message)


class WriteNotApplied(WriteUndone):
    """The row did not hold the requested mode after the write."""

    reason = "WRITE_NOT_APPLIED"
    public_message = (
        "the database did not keep the mode that was set, so the change was rolled back;"
        " an operator has to look at rules, triggers and constraints of the workspaces table, and at the column's type"
    )


class ChangeNotRecorded(WriteUndone):
    """The change left no entry in the change log."""

    reason = "CHANGE_NOT_RECORDED"
    public_message = (
        "the change log did not record the change, so it was rolled back;"
        " an operator has to enable the triggers on the workspaces table"
    )


class StorageError(RequestError):
    """The database could not be asked, or its answer could not be decoded. The message is constant.

    The only error that a failed database causes in a `Repository`. The driver's text is only in the server's log.
    """

    public_message: ClassVar[str] = ""

    def __init__(self, *, attachments: tuple[object, ...] = ()) -> None:
        super().__init__(self.public_message, attachments=attachments)


class DatabaseUnreachable(StorageError):
    """The connection was refused or reset, or the server is starting up or shutting down."""

    reason = "DATABASE_UNREACHABLE"
    public_message = "the database cannot be reached; retry"


class DatabaseTimeout(StorageError):
    """The database did not answer, or no connection was free, within the call's budget."""

    reason = "DATABASE_TIMEOUT"
    public_message = "the database did not answer in time; retry"


class DatabaseStale(StorageError):
    """The server is a standby, a replica or read-only, so its values may be out of date."""

    reason = "DATABASE_STALE"
    public_message = "the database is a standby, a replica or read-only, so its values may be out of date; retry"


class SchemaNotReady(StorageError):
    """A table or column that this service needs is missing."""

    reason = "SCHEMA_NOT_READY"
    public_message = (
        "the database lacks the billing mode schema as this service needs it;"
        " run: billing-grpc migrate up; if that does not help, the server's log says what is wrong"
    )


class DatabaseDenied(StorageError):
    """The database role of the service lacks a right, or its credentials are wrong."""

    reason = "DATABASE_DENIED"
    public_message = "the database denied access to the service's role; check its credentials and grants"


class ValueUnreadable(StorageError):
    """The answer of the database could not be decoded."""

    reason = "VALUE_UNREADABLE"
    public_message = "the stored value could not be read; an operator has to look at this row"


STORAGE_ERRORS: Final[dict[str, type[StorageError]]] = {
    error.reason: error
    for error in (
        DatabaseUnreachable,
        DatabaseTimeout,
        DatabaseStale,
        SchemaNotReady,
        DatabaseDenied,
        ValueUnreadable,
    )
}
"""The storage errors by their reason."""


class CallError(BillingError):
    """The client has no answer that it may use.

    Attributes:
        reason: the UPPER_SNAKE reason of the contract, which the fallback carries.
        message: a sentence for the caller.
    """

    reason: ClassVar[str] = ""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ServerUnreachable(CallError):
    """The connection failed, the answer was late, or the call was cut short. After a write, the outcome is unknown."""

    reason = "SERVER_UNREACHABLE"


class ServerRefused(CallError):
    """The server, or a proxy, refused the call with a status that has no class of its own."""

    reason = "SERVER_REFUSED"


class AnswerInvalid(CallError):
    """The answer is unknown, garbled or contradictory, or the answer to a write was cut short.

    The outcome of a write is then unknown.
    """

    reason = "ANSWER_INVALID"


class ClientMisused(CallError):
    """The client was used on two event loops at once or without one, or in a process in which gRPC does not work."""

    reason = "CLIENT_MISUSED"


class StartupError(BillingError):
    """The process cannot start. The message is for the operator and is never sent to a client."""


class SettingsError(StartupError):
    """The settings are invalid.

    Attributes:
        problems: one sentence for each problem, which names the setting and the remedy.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CatalogueError(StartupError):
    """The catalogue of vendor names is wrong.

    Attributes:
        problems: one sentence for each problem, which begins with the name.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(["the catalogue of vendor names (names.tsv) is wrong:", *problems]))
        self.problems = problems


class ListenError(StartupError):
    """The server cannot listen on an address."""


class MigrationError(StartupError):
    """The schema could not be read or changed."""


class EmbeddedPostgresError(StartupError):
    """The embedded database could not be started."""
