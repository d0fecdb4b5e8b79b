"""Server reflection in v1 and v1alpha; the library serves v1alpha alone, does not describe v1 and finds no methods."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from billing_grpc.server.calls.chain import Methods

V1ALPHA: Final[str] = reflection.SERVICE_NAME
V1: Final = "grpc.reflection.v1.ServerReflection"

_Found = TypeVar("_Found")


def add_to(methods: Methods, services: Sequence[str]) -> None:
    """Add the methods of reflection in both versions.

    Args:
        methods: where the methods are added.
        services: the full names of the server's other services.
    """
    servicer: Any = reflection.aio.ReflectionServicer([*services, V1ALPHA, V1], pool=_Pool())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, methods)
    # The messages of v1 are those of v1alpha; newer clients ask for v1 first.
    v1 = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods.add_registered_method_handlers(V1, {"ServerReflectionInfo": v1})


class _Pool:
    """The descriptor pool that the library searches: the process's pool, then reflection v1; finds methods too.

    The methods have the names of `DescriptorPool` and raise `KeyError` like it.
    """

    def __init__(self) -> None:
        # v1 has its own pool: another library may register v1 in the process's pool under another file name.
        self._pools = descriptor_pool.Default(), _v1_pool()

    def FindFileByName(self, file_name: str) -> FileDescriptor:
        """Return the file of this name."""
        return self._first(lambda pool: pool.FindFileByName(file_name))

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Return the file that holds a message, field, enum, service, method or extension of this full name."""
        try:
            return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._first(lambda pool: pool.FindServiceByName(service)).methods_by_name[method]
            file: FileDescriptor = found.containing_service.file
            return file

    def FindMessageTypeByName(self, full_name: str) -> Descriptor:
        """Return the message of this full name."""
        return self._first(lambda pool: pool.FindMessageTypeByName(full_name))

    def FindExtensionByNumber(self, message_descriptor: Descriptor, number: int) -> FieldDescriptor:
        """Return the extension of a message that has this number."""
        extension: FieldDescriptor = message_descriptor.file.pool.FindExtensionByNumber(message_descriptor, number)
        return extension

    def FindAllExtensions(self, message_descriptor: Descriptor) -> list[FieldDescriptor]:
        """Return all extensions of a message."""
        extensions: list[FieldDescriptor] = message_descriptor.file.pool.FindAllExtensions(message_descriptor)
        return extensions

    def _first(self, find: Callable[[descriptor_pool.DescriptorPool], _Found]) -> _Found:
        """Return the result of the first pool that has one."""
        own, v1 = self._pools
        try:
            return find(own)
        except KeyError:
            return find(v1)


def _v1_pool() -> descriptor_pool.DescriptorPool:
    v1alpha = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(v1alpha)
    # The two versions differ in their names alone.
    v1 = text_format.Parse(text_format.MessageToString(v1alpha).replace("v1alpha", "v1"), FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(v1)
    return pool
