"""A collector of traces: takes what a process of ours sends over OTLP/HTTP, and keeps it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What was received so far.

    Attributes:
        endpoint: where to send traces.
        bodies: every request, as it came.
        headers: of every request.
        hangs: while set, requests are taken and not answered.
    """

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}/v1/traces"
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.hangs = threading.Event()
        self.answers = threading.Event()

    def requests(self) -> list[ExportTraceServiceRequest]:
        """Every request, read."""
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    def spans(self) -> list[Span]:
        """Every span, in the order in which they came."""
        return [
            span
            for request in self.requests()
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resource(self) -> dict[str, str]:
        """What the first request says about its sender."""
        return {pair.key: pair.value.string_value for pair in self.requests()[0].resource_spans[0].resource.attributes}


def attributes(pairs: Iterator[KeyValue]) -> dict[str, str]:
    """Attributes that are texts, by name."""
    return {pair.key: pair.value.string_value for pair in pairs}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""

    class Receive(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.hangs.is_set():
                collector.answers.wait(60)
            collector.headers.append(dict(self.headers))
            collector.bodies.append(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receive) as server:
        collector = Collector(server.server_port)
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        try:
            yield collector
        finally:
            collector.answers.set()
            server.shutdown()
            serving.join()
