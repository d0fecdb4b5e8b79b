"""The trace context of a call: taken over when it is one, handed on by a client, and nothing else with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from billing_grpc.client.trace_headers import inject
from billing_grpc.errors import DatabaseTimeout
from billing_grpc.server.telemetry.spans import Tracing
from billing_grpc.wire.trace_context import current_trace, extract

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
PARENT: Final = f"00-{TRACE}-b7ad6b7169203331-01"
RESOLVE: Final = "/molecule.billing.v1.BillingModeService/ResolveBillingMode"

# id: metadata, whether its parent is taken over, the state that is
METADATA: Final[dict[str, tuple[Any, bool, str]]] = {
    "a parent": ((("traceparent", PARENT),), True, ""),
    "and a state": ((("traceparent", PARENT), ("tracestate", "a=1,b@c=2")), True, "a=1,b@c=2"),
    "spaces between": ((("traceparent", PARENT), ("tracestate", "a=1 , b=2")), True, "a=1,b=2"),
    "a later version": ((("traceparent", f"01{PARENT[2:]}"),), True, ""),
    "nothing": ((), False, ""),
    "two parents": ((("traceparent", PARENT), ("traceparent", PARENT)), False, ""),
    "bytes": ((("traceparent", PARENT.encode()),), False, ""),
    "a line more": ((("traceparent", PARENT + "\n"),), False, ""),
    "garbage": ((("traceparent", "x"),), False, ""),
    "a state that is none": ((("traceparent", PARENT), ("tracestate", "a=1,=,,")), True, ""),
    "a long state": ((("traceparent", PARENT), ("tracestate", "a=" + "x" * 511)), True, ""),
    "a state of many": (
        (("traceparent", PARENT), ("tracestate", ",".join(f"k{number}=" + "x" * 100 for number in range(5)))),
        True,
        "",
    ),
    "two states": ((("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=1")), True, ""),
    "another name": ((("x-traceparent", PARENT),), False, ""),
}


@pytest.mark.parametrize(("metadata", "taken", "state"), METADATA.values(), ids=METADATA)
def test_what_is_a_trace_context_is_taken_over_and_nothing_else(metadata: Any, taken: bool, state: str) -> None:
    found = trace.get_current_span(extract(metadata)).get_span_context()

    assert found.is_valid == taken
    assert found.trace_state.to_header() == state
    if taken:
        assert (f"{found.trace_id:032x}", found.is_remote) == (TRACE, True)


@contextmanager
def recorded() -> Iterator[tuple[Tracing, InMemorySpanExporter]]:
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing(provider.get_tracer("test")), exporter
    provider.shutdown()


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def test_a_client_hands_on_its_trace_in_place_of_any_given_and_leaves_the_rest() -> None:
    metadata = (("x-request-id", "7"), ("traceparent", "old"))
    assert inject(metadata) == list(metadata), "outside of a trace"
    with recorded() as (tracing, _):
        span = tracing.call_span(RESOLVE, (("traceparent", PARENT), ("tracestate", "a=1")))
        token = context.attach(baggage.set_baggage("held", "in-baggage"))
        injected = inject(metadata)
        context.detach(token)

        own = f"{trace.get_current_span().get_span_context().span_id:016x}"
        assert injected == [("x-request-id", "7"), ("traceparent", f"00-{TRACE}-{own}-01"), ("tracestate", "a=1")]
        assert current_trace() == (TRACE, own)
        span.end("OK")
    assert current_trace() is None


# id: how a call ended, whether that is the server's fault
CODES: Final = {
    **dict.fromkeys(("OK", "INVALID_ARGUMENT", "NOT_FOUND", "ABORTED", "UNAUTHENTICATED", "CANCELLED"), False),
    **dict.fromkeys(("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN"), True),
}


@pytest.mark.parametrize("code", CODES)
def test_a_call_is_an_error_when_the_server_is_to_blame(code: str) -> None:
    with recorded() as (tracing, exporter):
        tracing.call_span(RESOLVE, ()).end(code)

        found = only(exporter)
    assert found.attributes is not None
    assert found.attributes["rpc.response.status_code"] == code
    assert found.status.is_ok != CODES[code]
    assert found.attributes.get("error.type") == (code if CODES[code] else None)


def test_a_method_that_is_not_ours_is_not_repeated() -> None:
    with recorded() as (tracing, exporter):
        tracing.call_span("/secret.Value/X", ()).end("UNIMPLEMENTED")

        found = only(exporter)
    assert found.name == "_OTHER"
    assert "secret" not in found.to_json()


def test_an_errors_text_is_in_no_span() -> None:
    with recorded() as (tracing, exporter):
        span = tracing.call_span(RESOLVE, ())
        with pytest.raises(ValueError, match="secret"), tracing.storage_span("load_override", "SELECT", "workspaces"):
            raise ValueError("a secret")
        with pytest.raises(DatabaseTimeout), tracing.storage_span("load_override", "SELECT", "workspaces"):
            raise DatabaseTimeout
        span.end("OK")

        found = exporter.get_finished_spans()
        assert [span.status.status_code.name for span in found] == ["ERROR", "ERROR", "UNSET"]
        assert not [span for span in found if "secret" in span.to_json() or span.events]


def test_storage_that_nobody_called_for_leaves_no_trace() -> None:
    with recorded() as (tracing, exporter):
        with tracing.storage_span("load_override", "SELECT", "workspaces"):
            pass

        assert not exporter.get_finished_spans()


def test_the_library_has_nothing_to_say_about_what_a_caller_sent(caplog: pytest.LogCaptureFixture) -> None:
    for metadata, _, _ in METADATA.values():
        extract(metadata)

    assert caplog.records == []
