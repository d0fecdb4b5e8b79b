"""Convert errors of this package into rich gRPC statuses."""

from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from billing_grpc.errors import (
    DatabaseTimeout,
    DatabaseUnreachable,
    EtagStale,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    RequestError,
    StorageError,
    Unauthenticated,
    WorkspaceNotFound,
    WriteUndone,
)
from billing_grpc.model import Resolution, WorkspaceBillingMode
from billing_grpc.wire.messages import billing_mode_to_proto, resolution_to_proto

ERROR_DOMAIN: Final = "billing.molecule"
MAX_DETAILS_BYTES: Final = 4000
"""The largest size of a status with its details; gRPC drops the details of a larger one."""

_RETRY_AFTER: Final = Duration(seconds=1)

STATUS_CODES: Final[dict[type[RequestError], int]] = {
    InvalidArgument: code_pb2.INVALID_ARGUMENT,
    WorkspaceNotFound: code_pb2.NOT_FOUND,
    EtagStale: code_pb2.ABORTED,
    Unauthenticated: code_pb2.UNAUTHENTICATED,
    PermissionDenied: code_pb2.PERMISSION_DENIED,
    Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    StorageError: code_pb2.UNAVAILABLE,
    WriteUndone: code_pb2.FAILED_PRECONDITION,
}
"""The status code of each error that can reach a client; a subclass has the code of its nearest base class here."""


def status_code(error: RequestError) -> int:
    """Return the number of an error's status code."""
    return next(STATUS_CODES[base] for base in type(error).__mro__ if base in STATUS_CODES)


def error_to_status(error: RequestError) -> status_pb2.Status:
    """Return an error as a rich status: ErrorInfo, the details that its reason requires, and its attachments.

    The last field violations are left out if the status would exceed `MAX_DETAILS_BYTES`.
    """
    status = status_pb2.Status(code=status_code(error), message=error.message)
    _attach(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN))
    if isinstance(error, (DatabaseUnreachable, DatabaseTimeout)):
        _attach(status, error_details_pb2.RetryInfo(retry_delay=_RETRY_AFTER))
    for value in error.attachments:
        if isinstance(value, Resolution):
            _attach(status, resolution_to_proto(value))
        elif isinstance(value, WorkspaceBillingMode):
            _attach(status, billing_mode_to_proto(value))
    if isinstance(error, InvalidArgument):
        bad_request = error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=violation.field, description=violation.description, reason=error.reason
                )
                for violation in error.violations
            ]
        )
        while bad_request.ByteSize() + status.ByteSize() > MAX_DETAILS_BYTES:
            del bad_request.field_violations[-1]
        _attach(status, bad_request)
    return status


def _attach(status: status_pb2.Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)
