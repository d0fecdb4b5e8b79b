"""Turn the status of a call into an error of Connect, with its details."""

import re
from collections.abc import Iterator
from typing import Final

import grpc
from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from protobuf import Registry, wkt

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc.errors import ServerUnreachable
from billing_grpc.wire.statuses import ERROR_DOMAIN

_CODES: Final = {each.name: Code(each.name.lower()) for each in grpc.StatusCode if each.name not in {"OK", "CANCELLED"}}
_CODE_OF_NUMBER: Final = {each.value[0]: _CODES.get(each.name, Code.CANCELED) for each in grpc.StatusCode}
_TRANSPORT: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)
"""The statuses that gRPC itself gives when a connection fails; their text may name the server's address."""
_UNREACHABLE: Final = "the server cannot be reached, or ended the call without an answer"


def of_call(error: grpc.aio.AioRpcError) -> ConnectError:
    """Return the error of a failed call, with the details that the server sent.

    A status of gRPC itself has none. If it says that there is no connection, the error has the reason SERVER_UNREACHABLE.
    """
    try:
        # The types of this function know only gRPC's other kind of call.
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        status = None
    if status is not None:
        return of_status(status)
    number, text = error.code().value[0], error.details() or ""
    status = status_pb2.Status(code=number, message=text)
    if error.code() in _TRANSPORT:
        status.message = _UNREACHABLE
        info = error_details_pb2.ErrorInfo(reason=ServerUnreachable.reason, domain=ERROR_DOMAIN)
        status.details.add().Pack(info)
    return of_status(status)


def of_status(status: status_pb2.Status) -> ConnectError:
    """Return a rich status as an error of Connect; its details can be read in JSON too."""
    return ConnectError(_CODE_OF_NUMBER.get(status.code, Code.UNKNOWN), status.message, map(_detail, status.details))


def _detail(packed: AnyMessage) -> ErrorDetail:
    detail = ErrorDetail(wkt.Any(type_url=packed.type_url, value=packed.value))
    # Of a message that it knows, the library also writes the fields in JSON, as `debug`.
    known = detail.value(_REGISTRY)
    return detail if known is None else ErrorDetail(known)


def _with_imports(file: FileDescriptor) -> Iterator[FileDescriptor]:
    for each in file.dependencies:
        yield from _with_imports(each)
    yield file


def _registry() -> Registry:
    """Return the messages of details in the form of the Connect library, which has protobuf classes of its own."""
    files = FileDescriptorSet()
    for root in (error_details_pb2.DESCRIPTOR, pb.DESCRIPTOR):
        for each in _with_imports(root):
            if each.name not in {known.name for known in files.file}:
                each.CopyToProto(files.file.add())
    for file in files.file:
        for message in file.message_type:
            _name_in_json(message)
    return wkt.FileDescriptorSet.from_binary(files.SerializeToString()).to_registry()


def _name_in_json(message: DescriptorProto) -> None:
    """Add the names in JSON, which the generated Python code leaves out."""
    for field in message.field:
        field.json_name = re.sub("_(.)", lambda match: match[1].upper(), field.name)
    for nested in message.nested_type:
        _name_in_json(nested)


_REGISTRY: Final = _registry()
