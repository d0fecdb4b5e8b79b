"""A server that answers every call, whatever its method, with the bytes it is told to."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc


class _Every(grpc.GenericRpcHandler):
    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        if handler_call_details.method.endswith("/Watch"):
            return grpc.unary_stream_rpc_method_handler(lambda request, _: iter([self._answer(request)]))
        return grpc.unary_unary_rpc_method_handler(lambda request, _: self._answer(request))


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """The address of a server that gives these bytes for the bytes of each request; many at once."""
    server = grpc.server(ThreadPoolExecutor(50), handlers=[_Every(answer)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
