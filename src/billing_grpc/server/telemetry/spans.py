"""The spans that this service adds to a call's trace; `trace_export` sends them.

A span holds the method, the status and the duration, and nothing of a request, its metadata or an SQL statement. From the
caller's context come the trace id, the parent and the vendors' state, and no baggage.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry.context import attach, detach
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context

from billing_grpc.errors import SettingsError, StorageError
from billing_grpc.extras import Extra
from billing_grpc.server.auth import roles
from billing_grpc.wire.metadata import Metadata
from billing_grpc.wire.trace_context import extract

# The statuses that the conventions for gRPC count as the server's failure; every other status is an answer.
_SERVERS_FAULT: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
_OTHER: Final = "_OTHER"


def require_exporter() -> None:
    """Return if the packages that send spans are installed.

    Raises:
        SettingsError: a package is missing; says how to install it.
    """
    try:
        found = all(
            importlib.util.find_spec(name) for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
        )
    except ModuleNotFoundError:
        found = False
    if not found:
        raise SettingsError([f"{Extra.TRACING.needed}, or leave it unset"])


class Tracing:
    """Makes the spans of one server.

    Args:
        tracer: makes them.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def call_span(self, path: str, metadata: Metadata) -> "CurrentSpan":
        """Return a SERVER span for a call, a child of the caller's span; it is the current span until its end.

        Args:
            path: as in `/package.Service/Method`; the name of an unknown method is left out.
            metadata: the metadata of the call.
        """
        method = path[1:] if path in roles.MAY_CALL else _OTHER
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        span = self._tracer.start_span(method, context=extract(metadata), kind=SpanKind.SERVER, attributes=attributes)
        return CurrentSpan(span)

    @contextmanager
    def storage_span(self, operation: str, statement: str, table: str) -> Iterator[None]:
        """Run the body in a CLIENT span, a child of the current span; without a current span there is none.

        Args:
            operation: its name in `Repository`.
            statement: the kind of SQL statement, as in `SELECT`.
            table: the table that it reads or writes.
        """
        if not get_current_span().get_span_context().is_valid:
            # The check of administration runs every second outside of a call, and would make a trace each time.
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


class CurrentSpan:
    """A span that is current from its construction to its end."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token = attach(set_span_in_context(span))

    def end(self, code: str) -> None:
        """End the span; the task that made it calls this.

        Args:
            code: the name of the call's status.
        """
        self._span.set_attribute("rpc.response.status_code", code)
        if code in _SERVERS_FAULT:
            self._span.set_attribute("error.type", code)
            self._span.set_status(Status(StatusCode.ERROR))
        detach(self._token)
        self._span.end()
