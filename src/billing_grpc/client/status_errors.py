"""Turn the status of a failed call, and its details, into one of our errors."""

from typing import Final, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc.client import verified
from billing_grpc.errors import (
    STORAGE_ERRORS,
    AnswerInvalid,
    BillingError,
    ChangeNotRecorded,
    EtagStale,
    FieldViolation,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    ServerRefused,
    ServerUnreachable,
    Unauthenticated,
    WorkspaceNotFound,
    WriteNotApplied,
    printable,
)
from billing_grpc.wire.statuses import ERROR_DOMAIN

Detail = TypeVar("Detail", bound=Message)

_DETAILS_KEY: Final = "grpc-status-details-bin"
_UNREACHABLE: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)
_BY_CODE: Final = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}
_SET_MODE: Final = "SetWorkspaceBillingMode"
_CUT_SHORT: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""Statuses that a call may have if gRPC or a proxy dropped its answer: then the outcome of a write is unknown.

When a network stalls in the middle of an answer, nginx ends the call with INTERNAL and HAProxy with UNKNOWN.
"""
_SHOWN: Final = 256
"""The largest number of characters of a proxy's text in a note."""
_WITHOUT_DETAILS: Final = {
    each.reason: each for each in (Unauthenticated, PermissionDenied, Overloaded, WriteNotApplied, ChangeNotRecorded)
}


def call_error(error: grpc.aio.AioRpcError | grpc.RpcError, method: str = "") -> BillingError:
    """Return our error for a call that ended with a status; `method` is the bare name of the called method.

    Storage errors, `InvalidArgument`, `WorkspaceNotFound`, `EtagStale` and `Overloaded` need the details that the contract
    promises. The status alone does not prove them: a proxy may use the same statuses for its own reasons, and gRPC itself
    uses RESOURCE_EXHAUSTED for an answer that is too long.
    """
    code, details = error.code(), _details(error)
    text = str(error.details() or "no details")
    service_error = _service_error(details, text)
    if service_error is not None:
        return service_error
    if code in _UNREACHABLE:
        return ServerUnreachable(f"{code.name}: {text}")
    if code in _BY_CODE:
        refused = _BY_CODE[code]()
        # The constant message alone would send the reader to this service's tokens and roles.
        shown = printable(text[:_SHOWN])
        refused.add_note(f"without this service's details, as a proxy answers: {code.name}: {shown}")
        return refused
    if method == _SET_MODE and code in _CUT_SHORT:
        return AnswerInvalid(f"the server's answer cannot be used: {code.name}: {text}")
    return ServerRefused(f"{code.name}: {text}")


def _service_error(details: status_pb2.Status, text: str) -> BillingError | None:
    info = _unpacked(details, error_details_pb2.ErrorInfo())
    reason = str(info.reason) if info.domain == ERROR_DOMAIN else ""
    if reason in STORAGE_ERRORS:
        return STORAGE_ERRORS[reason](attachments=_attachments(details))
    if reason in _WITHOUT_DETAILS:
        return _WITHOUT_DETAILS[reason]()
    if reason == WorkspaceNotFound.reason:
        return WorkspaceNotFound(text)
    if reason == EtagStale.reason:
        return EtagStale(text, attachments=_attachments(details))
    if reason and details.code == code_pb2.INVALID_ARGUMENT:
        return InvalidArgument(reason, *_violations(details, text))
    return None


def _details(error: grpc.aio.AioRpcError | grpc.RpcError) -> status_pb2.Status:
    sent = cast("tuple[tuple[str, str | bytes], ...]", error.trailing_metadata() or ())
    for key, value in sent:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def _attachments(details: status_pb2.Status) -> tuple[object, ...]:
    """Return the fallback of a failed read or the current state of a stale write; nothing if it contradicts itself."""
    current = _unpacked(details, pb.WorkspaceBillingMode())
    resolution = _unpacked(details, pb.BillingModeResolution())
    try:
        if current.ByteSize():
            return (verified.workspace(current, current.resolution.workspace_id),)
        if resolution.ByteSize():
            return (verified.resolution(resolution, resolution.workspace_id),)
    except AnswerInvalid:
        return ()
    return ()


def _violations(details: status_pb2.Status, text: str) -> list[FieldViolation]:
    bad_request = _unpacked(details, error_details_pb2.BadRequest())
    return [FieldViolation(each.field, each.description) for each in bad_request.field_violations] or [
        FieldViolation("request", text)
    ]


def _unpacked(details: status_pb2.Status, into: Detail) -> Detail:
    for each in details.details:
        try:
            if each.Unpack(into):
                break
        except DecodeError:
            break
    return into
