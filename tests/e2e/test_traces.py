"""Traces of a real process: from the caller through the call to its query, and nothing that a collector does is felt."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from billing_grpc import __version__
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import BillingClient
from billing_grpc.model import BillingMode
from billing_grpc.server.auth.principals import token_digest
from tests.support.commands import billing_grpc
from tests.support.otlp import Collector, attributes, collecting
from tests.support.polling import until
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

SERVICE: Final = "molecule.billing.v1.BillingModeService/"
UNKNOWN: Final = "5f0e9b0e-0000-4000-8000-000000000000"
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
PARENT: Final = f"00-{TRACE}-b7ad6b7169203331-01"
TOKEN: Final = "token-that-nobody-may-see"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def of_kind(collector: Collector, kind: "Span.SpanKind.ValueType") -> list[Span]:
    return [span for span in collector.spans() if span.kind == kind]


def server_spans(collector: Collector, number: int) -> list[Span]:
    """The spans of calls, once there are as many."""
    return until(lambda: spans if len(spans := of_kind(collector, Span.SPAN_KIND_SERVER)) >= number else [])


def call(server: Server, rpc: str, request: Any, metadata: Any = ()) -> grpc.StatusCode:
    asked: Any = getattr(server.stub, rpc).future(request, timeout=30, metadata=metadata)
    code: grpc.StatusCode = asked.code()
    return code


async def resolved(address: str, workspace: str) -> BillingMode:
    async with BillingClient(address) as client:
        return (await client.resolve(workspace)).mode


def test_one_trace_leads_from_the_caller_through_the_call_to_the_query(
    serve: Serve, collector: Collector, database_url: str
) -> None:
    workspace = add_workspace(database_url, "byok")
    server = serve(
        settings={"DATABASE_URL": as_service(database_url), "BILLING_GRPC_TRACES_ENDPOINT": collector.endpoint}
    )
    provider, callers = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(callers))
    with provider.get_tracer("caller").start_as_current_span("the caller's"):
        assert asyncio.run(resolved(server.address, workspace)) is BillingMode.BYOK
    provider.shutdown()

    (caller,) = callers.get_finished_spans()
    context = caller.get_span_context()
    assert context is not None
    (of_call,) = server_spans(collector, 1)
    trace_id = context.trace_id.to_bytes(16, "big")
    (of_query,) = [each for each in of_kind(collector, Span.SPAN_KIND_CLIENT) if each.trace_id == trace_id]
    assert of_call.trace_id == trace_id
    assert of_call.parent_span_id == context.span_id.to_bytes(8, "big")
    assert of_query.parent_span_id == of_call.span_id
    assert of_call.name == SERVICE + "ResolveBillingMode"
    assert attributes(iter(of_call.attributes)) == {
        "rpc.system.name": "grpc",
        "rpc.method": SERVICE + "ResolveBillingMode",
        "rpc.response.status_code": "OK",
    }
    assert of_query.name == "SELECT workspaces"
    assert attributes(iter(of_query.attributes)) == {
        "db.system.name": "postgresql",
        "db.operation.name": "SELECT",
        "db.collection.name": "workspaces",
        "billing_grpc.operation": "load_override",
    }
    assert of_call.start_time_unix_nano <= of_query.start_time_unix_nano
    assert of_query.end_time_unix_nano <= of_call.end_time_unix_nano
    resource = collector.resource()
    assert (resource["service.name"], resource["service.version"]) == ("billing_grpc", __version__)
    line = server.logged("call", trace_id=trace_id.hex())
    assert (line["workspace"], line["span_id"]) == (workspace, of_call.span_id.hex())


def test_spans_are_sent_before_the_server_has_stopped(serve: Serve, collector: Collector, database_url: str) -> None:
    server = serve(
        settings={"DATABASE_URL": as_service(database_url), "BILLING_GRPC_TRACES_ENDPOINT": collector.endpoint}
    )
    call(server, "ResolveBillingMode", service_pb.ResolveBillingModeRequest())
    assert server.stop() == 0

    assert len(of_kind(collector, Span.SPAN_KIND_SERVER)) == 1


# id: a call and its database, how its span ends, whether that is the server's fault
ENDS: Final[dict[str, tuple[str, Any, str, bool]]] = {
    "nothing there": (
        "GetWorkspaceBillingMode",
        service_pb.GetWorkspaceBillingModeRequest(workspace_id=UNKNOWN),
        "NOT_FOUND",
        False,
    ),
    "a wrong request": (
        "ResolveBillingMode",
        service_pb.ResolveBillingModeRequest(workspace_id=TOKEN),
        "INVALID_ARGUMENT",
        False,
    ),
}


@pytest.mark.parametrize(("rpc", "request_", "code", "fault"), ENDS.values(), ids=ENDS)
def test_a_rich_error_is_recorded_with_its_status_and_none_of_its_words(
    serve: Serve, collector: Collector, database_url: str, rpc: str, request_: Any, code: str, fault: bool
) -> None:
    server = serve(
        settings={"DATABASE_URL": as_service(database_url), "BILLING_GRPC_TRACES_ENDPOINT": collector.endpoint}
    )
    assert call(server, rpc, request_).name == code

    (span,) = server_spans(collector, 1)
    assert attributes(iter(span.attributes))["rpc.response.status_code"] == code
    assert (span.status.code, span.status.message) == (2 if fault else 0, "")
    assert not span.events
    assert TOKEN.encode() not in b"".join(collector.bodies)


def test_an_outage_is_recorded_as_the_servers_fault_with_its_reason(serve: Serve, collector: Collector) -> None:
    settings = {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "BILLING_GRPC_TRACES_ENDPOINT": collector.endpoint}
    server = serve(settings=settings)
    request = service_pb.GetWorkspaceBillingModeRequest(workspace_id=UNKNOWN)
    assert call(server, "GetWorkspaceBillingMode", request) is grpc.StatusCode.UNAVAILABLE

    (span,) = server_spans(collector, 1)
    (query,) = [each for each in of_kind(collector, Span.SPAN_KIND_CLIENT) if each.trace_id == span.trace_id]
    assert attributes(iter(span.attributes))["error.type"] == "UNAVAILABLE"
    assert attributes(iter(query.attributes))["error.type"] == "DATABASE_UNREACHABLE"
    for each in (span, query):
        assert (each.status.code, each.status.message, len(each.events)) == (2, "", 0)


def test_nothing_that_a_caller_sent_is_in_a_span(
    serve: Serve, collector: Collector, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "tokens.toml").write_text(
        f'[[principal]]\nname = "somebody-known"\nrole = "admin"\ntoken_sha256 = ["{token_digest(TOKEN)}"]\n'
    )
    workspace = add_workspace(database_url)
    settings = {
        "DATABASE_URL": as_service(database_url),
        "BILLING_GRPC_LOCAL_ADMIN": None,
        "BILLING_GRPC_TOKENS_FILE": tmp_path / "tokens.toml",
        "BILLING_GRPC_TRACES_ENDPOINT": collector.endpoint,
    }
    server = serve(settings=settings)
    metadata = (
        ("authorization", f"Bearer {TOKEN}"),
        ("baggage", "held=in-baggage"),
        ("x-request-id", "a-request-id"),
        ("traceparent", PARENT),
    )
    said = "a-reason-in-words"
    call(
        server,
        "SetWorkspaceBillingMode",
        service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace, mode=pb.BILLING_MODE_BYOK, reason=said),
        metadata,
    )
    request = service_pb.ValidateSecretWriteRequest(workspace_id=workspace, secret_keys=["OPENAI_API_KEY"])
    call(server, "ValidateSecretWrite", request, metadata)
    server_spans(collector, 2)

    sent = b"".join(collector.bodies)
    for held in (
        TOKEN,
        "Bearer",
        "baggage",
        "a-request-id",
        workspace,
        said,
        "OPENAI",
        "byok",
        "somebody-known",
        "SET ",
    ):
        assert held.encode() not in sent, held


# id: metadata that no honest caller sends
HOSTILE: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "garbage": (("traceparent", TOKEN),),
    "zeros": (("traceparent", f"00-{'0' * 32}-{'0' * 16}-01"),),
    "a version that never was": (("traceparent", f"ff{PARENT[2:]}"),),
    "too long": (("traceparent", PARENT + "-" + "x" * 3000),),
    "upper case": (("traceparent", PARENT.upper()),),
    "empty": (("traceparent", ""),),
    "a state without a parent": (("tracestate", "a=1"),),
}
STATES: Final[dict[str, str]] = {
    "garbage": TOKEN + ",,;=",
    "too long": "a=" + "x" * 600,
    "many": ",".join(f"k{number}=1" for number in range(40)),
    "duplicates": "a=1,a=2",
}


def test_a_hostile_trace_context_neither_breaks_nor_bloats_nor_is_repeated(
    serve: Serve, collector: Collector, database_url: str
) -> None:
    settings = {
        "DATABASE_URL": as_service(database_url),
        "BILLING_GRPC_TRACES_ENDPOINT": collector.endpoint,
        "BILLING_GRPC_LOG_LEVEL": "DEBUG",
    }
    server = serve(settings=settings)
    request = service_pb.ResolveBillingModeRequest()
    for metadata in HOSTILE.values():
        assert call(server, "ResolveBillingMode", request, metadata) is grpc.StatusCode.OK
    for state in STATES.values():
        metadata = (("traceparent", PARENT), ("tracestate", state))
        assert call(server, "ResolveBillingMode", request, metadata) is grpc.StatusCode.OK
    good = (("traceparent", PARENT), ("tracestate", "vendor=1, other@system=two"))
    assert call(server, "ResolveBillingMode", request, good) is grpc.StatusCode.OK

    spans = server_spans(collector, len(HOSTILE) + len(STATES) + 1)
    assert [span.trace_id.hex() == TRACE for span in spans] == [False] * len(HOSTILE) + [True] * (len(STATES) + 1)
    assert {len(span.parent_span_id) for span in spans[: len(HOSTILE)]} == {0}, "a trace of their own"
    assert [span.trace_state for span in spans[len(HOSTILE) :]] == [""] * len(STATES) + ["vendor=1,other@system=two"]
    assert max(len(body) for body in collector.bodies) < 6000
    server.stop()
    assert TOKEN not in server.stderr
    assert "opentelemetry" not in server.stderr
    assert "urllib3" not in server.stderr


def test_a_caller_decides_whether_its_trace_is_recorded(serve: Serve, collector: Collector, database_url: str) -> None:
    settings = {
        "DATABASE_URL": as_service(database_url),
        "BILLING_GRPC_TRACES_ENDPOINT": collector.endpoint,
        "BILLING_GRPC_TRACES_SAMPLE": "0",
        # None of these has a say.
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_SERVICE_NAME": "another",
        "OTEL_RESOURCE_ATTRIBUTES": "held=by-the-environment",
        "OTEL_BSP_SCHEDULE_DELAY": "3600000",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "not a number",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "0",
    }
    server = serve(settings=settings)
    request = service_pb.ResolveBillingModeRequest()
    for metadata in ((), (("traceparent", PARENT[:-1] + "0"),), (("traceparent", PARENT),)):
        call(server, "ResolveBillingMode", request, metadata)
    server_spans(collector, 1)
    server.stop()

    (span,) = collector.spans()
    assert span.trace_id.hex() == TRACE
    assert len(span.attributes) == 3
    assert set(collector.resource()) == {"service.name", "service.version", "service.instance.id"}
    assert collector.resource()["service.name"] == "billing_grpc"


def test_a_collector_that_hangs_is_felt_by_no_call_and_does_not_hold_the_server(
    serve: Serve, collector: Collector, database_url: str
) -> None:
    collector.hangs.set()
    server = serve(
        settings={"DATABASE_URL": as_service(database_url), "BILLING_GRPC_TRACES_ENDPOINT": collector.endpoint}
    )
    slowest = _slowest(server, 3.5)
    assert slowest < 1.0
    server.logged("traces lost")

    stopped = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - stopped < 6.0


def test_a_collector_that_is_not_there_is_felt_by_no_call_and_said_once_in_a_while(
    serve: Serve, database_url: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1/traces"
    server = serve(settings={"DATABASE_URL": as_service(database_url), "BILLING_GRPC_TRACES_ENDPOINT": nobody})
    assert _slowest(server, 5.0) < 1.0
    assert server.stop() == 0

    assert len(server.records("traces lost")) == 1
    assert "opentelemetry" not in server.stderr


def _slowest(server: Server, seconds: float) -> float:
    """How long the slowest of the calls took that were made for this long."""
    ends, slowest = time.monotonic() + seconds, 0.0
    while time.monotonic() < ends:
        started = time.monotonic()
        server.resolve()
        slowest = max(slowest, time.monotonic() - started)
        time.sleep(0.01)
    return slowest


BLOCKED: Final = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry.sdk"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Without())
"""


def test_traces_without_what_sends_them_are_a_start_up_error_that_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    settings = {"PYTHONPATH": str(tmp_path), "BILLING_GRPC_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}
    ended = billing_grpc("serve", settings=settings)

    assert ended.returncode == 2
    assert (
        "BILLING_GRPC_TRACES_ENDPOINT: needs the extra `tracing`: pip install 'billing-grpc[tracing]'" in ended.stderr
    )


def test_without_an_endpoint_no_sdk_is_needed_and_a_callers_trace_is_left_alone(
    serve: Serve, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    server = serve(settings={"DATABASE_URL": as_service(database_url), "PYTHONPATH": str(tmp_path)})
    metadata = (("traceparent", PARENT), ("x-request-id", "request-8"))
    assert call(server, "ResolveBillingMode", service_pb.ResolveBillingModeRequest(), metadata) is grpc.StatusCode.OK

    assert "trace_id" not in server.logged("call", request_id="request-8")


PROBLEMS: Final = {
    "no URL": "collector:4318",
    "another scheme": "grpc://collector:4317",
    "no host": "http://",
    "a wrong port": "http://collector:x/v1/traces",
}


@pytest.mark.parametrize("endpoint", PROBLEMS.values(), ids=PROBLEMS)
def test_an_endpoint_that_is_none_is_a_start_up_error(endpoint: str) -> None:
    ended = billing_grpc("serve", settings={"BILLING_GRPC_TRACES_ENDPOINT": endpoint})

    assert ended.returncode == 2
    assert "BILLING_GRPC_TRACES_ENDPOINT: must be the collector's URL for traces" in ended.stderr


def test_credentials_in_an_endpoint_are_refused_and_not_repeated() -> None:
    ended = billing_grpc("serve", settings={"BILLING_GRPC_TRACES_ENDPOINT": f"https://me:{TOKEN}@collector/v1/traces"})

    assert ended.returncode == 2
    assert "OTEL_EXPORTER_OTLP_TRACES_HEADERS" in ended.stderr
    assert TOKEN not in ended.stderr
