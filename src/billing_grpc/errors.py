"""Every error of the service, in one tree.

    BillingError
    ├── RequestError                  becomes a gRPC status
    │   ├── InvalidArgument           the request is wrong and will stay wrong
    │   ├── WorkspaceNotFound         there is no such workspace
    │   ├── EtagStale                 the workspace changed since the caller looked
    │   ├── Unauthenticated           nobody this server knows is calling
    │   ├── PermissionDenied          the caller is known and may not
    │   ├── Overloaded                too many calls at once
    │   ├── WriteUndone               the database changed or dropped the write, which was rolled back
    │   │   ├── WriteNotApplied       a rule or a trigger left another state than the one asked for
    │   │   └── ChangeNotRecorded     the change log holds no entry of the change
    │   └── StorageError              the database could not be asked
    │       ├── DatabaseUnreachable   refused, reset, shut down, failing over
    │       ├── DatabaseTimeout       no answer, or no free connection, within the call's budget
    │       ├── DatabaseStale         a standby, a replica or a read-only server: its values may be old
    │       ├── SchemaNotReady        the migrations were not run
    │       ├── DatabaseDenied        the role may not, or the credentials are wrong
    │       └── ValueUnreadable       an answer came and could not be understood
    ├── CallError                     a client has no answer that it may use; never sent by a server
    │   ├── ServerUnreachable         no connection, no answer in time, or the call was cut short
    │   ├── ServerRefused             the server, or something on the way, said no
    │   ├── AnswerInvalid             an answer came that is unknown, garbled or contradicts itself
    │   └── ClientMisused             the client was used where it cannot work; nothing was sent
    └── StartupError                  the process cannot start; never reaches a client
        ├── SettingsError             the settings are wrong, all of them listed
        ├── ListenError               an address cannot be listened on
        ├── MigrationError            the schema could not be changed
        └── EmbeddedPostgresError     the embedded database could not be started

Messages of a `RequestError` go to clients: constant text, field names and at most 64 characters of what the client sent.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

SHOWN_CLIENT_TEXT: Final = 64
"""How many characters of a client's text a message may repeat."""


def quoted(text: str) -> str:
    """A client's text as a message may show it: at most 64 characters, no control characters, in quotes."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:SHOWN_CLIENT_TEXT])
    return f'"{shown}{"..." if len(text) > SHOWN_CLIENT_TEXT else ""}"'


class BillingError(Exception):
    """Root of every error this package raises on purpose."""


class RequestError(BillingError):
    """A call that fails with a status; `reason` and the message are public contract.

    Attributes:
        reason: the UPPER_SNAKE reason of the contract, sent as `google.rpc.ErrorInfo.reason`.
        message: a sentence for people, safe to send to a client.
        attachments: values of `model` that travel with the error as status details.
    """

    reason: str = ""

    def __init__(self, message: str, *, attachments: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.attachments = attachments


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong.

    Attributes:
        field: its path, as in `secret_keys[3]`.
        description: what is wrong and what would be right.
    """

    field: str
    description: str


class InvalidArgument(RequestError):
    """The request is wrong and will stay wrong when repeated; names each wrong field and the remedy."""

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
    """The workspace's override changed since the caller read it; carries the current state."""

    reason = "ETAG_STALE"


class Unauthenticated(RequestError):
    """The call carries no credentials this server accepts; the text is constant, whatever was wrong with them."""

    reason = "CREDENTIALS_INVALID"

    def __init__(self) -> None:
        super().__init__("no valid credentials: send 'authorization: Bearer TOKEN', or a client certificate known here")


class PermissionDenied(RequestError):
    """The caller is known, and its role may not call this method; the text is constant."""

    reason = "ROLE_DENIED"

    def __init__(self) -> None:
        super().__init__("this caller's role may not call this method")


class Overloaded(RequestError):
    """More calls are running than this server was told to run at once."""

    reason = "OVERLOADED"

    def __init__(self) -> None:
        super().__init__("too many calls at once; retry after a pause")


class WriteUndone(RequestError):
    """The database accepted the write and did something else; the transaction was rolled back, so nothing changed.

    Repeating the call does not help until an operator has changed the database; the message is constant.
    """

    public_message: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__(self.public_message)


class WriteNotApplied(WriteUndone):
    """After the write, the row did not hold what was asked for."""

    reason = "WRITE_NOT_APPLIED"
    public_message = (
        "the database did not keep the mode that was set, so the change was rolled back;"
        " an operator has to look for a rule or a trigger on the workspaces table"
    )


class ChangeNotRecorded(WriteUndone):
    """The change left no entry in the change log."""

    reason = "CHANGE_NOT_RECORDED"
    public_message = (
        "the change log did not record the change, so it was rolled back;"
        " an operator has to enable the triggers on the workspaces table"
    )


class StorageError(RequestError):
    """The database could not be asked, or its answer not understood; the message is constant.

    Raised by every `Repository`, whatever the driver said: the driver's text stays in the server's log.
    """

    public_message: ClassVar[str] = ""

    def __init__(self, *, attachments: tuple[object, ...] = ()) -> None:
        super().__init__(self.public_message, attachments=attachments)


class DatabaseUnreachable(StorageError):
    """Refused, reset, shut down or starting up."""

    reason = "DATABASE_UNREACHABLE"
    public_message = "the database cannot be reached; retry"


class DatabaseTimeout(StorageError):
    """No answer, or no free connection, within the call's budget."""

    reason = "DATABASE_TIMEOUT"
    public_message = "the database did not answer in time; retry"


class DatabaseStale(StorageError):
    """The server that answered is a standby, a replica or read-only, so what it holds may be out of date."""

    reason = "DATABASE_STALE"
    public_message = "the database is a standby, a replica or read-only, so its values may be out of date; retry"


class SchemaNotReady(StorageError):
    """A table or column this service needs is missing."""

    reason = "SCHEMA_NOT_READY"
    public_message = (
        "the database lacks the billing mode schema where the service's role looks for it;"
        " run: billing-grpc migrate up, or correct the role's search path"
    )


class DatabaseDenied(StorageError):
    """The service's role lacks a right, or its credentials are wrong."""

    reason = "DATABASE_DENIED"
    public_message = "the database denied access to the service's role; check its credentials and grants"


class ValueUnreadable(StorageError):
    """The database answered with something that could not be understood."""

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
"""The storage errors by reason."""


class CallError(BillingError):
    """A client has no answer that it may use.

    Attributes:
        reason: the UPPER_SNAKE reason of the contract that a closed answer carries.
        message: a sentence for people.
    """

    reason: ClassVar[str] = ""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ServerUnreachable(CallError):
    """No connection, no answer in time, or the call was cut short; after a write, the outcome is unknown."""

    reason = "SERVER_UNREACHABLE"


class ServerRefused(CallError):
    """The server, or something on the way to it, said no in a way that has no class of its own."""

    reason = "SERVER_REFUSED"


class AnswerInvalid(CallError):
    """An answer came that is unknown, garbled or contradicts itself; after a write, the outcome is unknown."""

    reason = "ANSWER_INVALID"


class ClientMisused(CallError):
    """The client was used on a second event loop at once, or in a process forked after gRPC was used; nothing was sent."""

    reason = "CLIENT_MISUSED"


class StartupError(BillingError):
    """The process cannot start; the message is for the operator and never reaches a client."""


class SettingsError(StartupError):
    """The settings are wrong.

    Attributes:
        problems: one sentence each, naming the setting and the remedy.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ListenError(StartupError):
    """An address cannot be listened on."""


class MigrationError(StartupError):
    """The schema could not be changed or looked at."""


class EmbeddedPostgresError(StartupError):
    """The embedded database could not be started."""
