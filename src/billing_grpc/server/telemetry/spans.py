"""The spans that this service adds to a call's trace. Nothing leaves the process here.

Spans tell which method, how it ended and how long it took. Nothing of a request, its metadata or a statement stands in
them, and of a caller's context no more is taken over than a trace's id, its parent and the vendors' state: no baggage.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span

from billing_grpc.errors import SettingsError, StorageError
from billing_grpc.server.auth import roles
from billing_grpc.wire.trace_context import Metadata, extract

# What is the server's own failure, as the conventions for gRPC have it; everything else is an answer.
_SERVERS_FAULT: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
_OTHER: Final = "_OTHER"


def require_exporter() -> None:
    """Makes sure that spans can be sent.

    Raises:
        SettingsError: what sends them is not installed; says how to install it.
    """
    try:
        found = all(
            importlib.util.find_spec(name) for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
        )
    except ModuleNotFoundError:
        found = False
    if not found:
        raise SettingsError(["needs the extra `tracing`: pip install 'billing-grpc[tracing]', or leave it unset"])


class Tracing:
    """Makes the spans of one server.

    Args:
        tracer: where they begin.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def call_span(self, path: str, metadata: Metadata) -> Iterator[Span]:
        """A SERVER span for a call, the child of the caller's; whoever opens it says how the call ended (`ended`).

        Args:
            path: as in `/package.Service/Method`; one that is not ours is not repeated.
            metadata: of the call.
        """
        method = path[1:] if path in roles.MAY_CALL else _OTHER
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        with self._tracer.start_as_current_span(
            method,
            context=extract(metadata),
            kind=SpanKind.SERVER,
            attributes=attributes,
            # An exception's text may hold what a caller sent.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    @contextmanager
    def storage_span(self, operation: str, statement: str, table: str) -> Iterator[None]:
        """A CLIENT span for an operation of storage, the child of the current one; none outside of a call.

        Args:
            operation: its name in `Repository`.
            statement: the kind of SQL statement, as in `SELECT`.
            table: what it is about.
        """
        if not get_current_span().get_span_context().is_valid:
            # Whoever looks every second whether the database is there would leave a trace a second.
            yield
            return
        attributes = {
            "db.system.name": "postgresql",
            "db.operation.name": statement,
            "db.collection.name": table,
            "billing_grpc.operation": operation,
        }
        with self._tracer.start_as_current_span(
            f"{statement} {table}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except Exception as error:
                span.set_attribute(
                    "error.type", error.reason if isinstance(error, StorageError) else type(error).__name__
                )
                span.set_status(Status(StatusCode.ERROR))
                raise


def ended(span: Span, code: str) -> None:
    """Says on a call's span how the call ended, by the name of its status."""
    span.set_attribute("rpc.response.status_code", code)
    if code in _SERVERS_FAULT:
        span.set_attribute("error.type", code)
        span.set_status(Status(StatusCode.ERROR))
