"""Every RPC through a real gateway over Connect, JSON and gRPC-Web; the wire is read and written here, or by curl."""

import base64
import json
import socket
import subprocess
from collections.abc import Iterator
from typing import Any, Final

import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from tests.support.gateways import TOKENS, UNKNOWN, Answer, Gateway, GrpcWeb, Site, enveloped, frames, gateway, site
from tests.support.polling import PATIENCE
from tests.support.servers import Serve
from tests.support.workspaces import stored_mode

ORIGIN: Final = "https://console.example"
SERVICE: Final = service_pb.DESCRIPTOR.services_by_name["BillingModeService"]
PREFIX: Final = f"/{SERVICE.full_name}"
HEALTH: Final = "/grpc.health.v1.Health"
END_STREAM: Final = 2


@pytest.fixture(scope="module")
def place(module_serve: Serve, module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return site(module_serve, module_database_url, tmp_path_factory.mktemp("site"), {"BILLING_GRPC_LOG_LEVEL": "DEBUG"})


@pytest.fixture(scope="module")
def http(place: Site) -> Iterator[Gateway]:
    with gateway(place.folder / "gateway", *place.upstreams["tls"], "--origin", ORIGIN) as running:
        yield running


def requests(workspace: str) -> dict[str, dict[str, Any]]:
    """A good request of each method whose empty request is none."""
    return {
        "ResolveBillingMode": {"workspace_id": workspace},
        "BatchResolveBillingModes": {"workspace_ids": [workspace, UNKNOWN]},
        "GetWorkspaceBillingMode": {"workspace_id": workspace},
        "SetWorkspaceBillingMode": {"workspace_id": workspace, "mode": "BILLING_MODE_BYOK", "reason": "theirs \u2603"},
        "ValidateSecretWrite": {"org_wide": {}, "secret_keys": ["OPENAI_API_KEY"]},
        "PlanProvisionEnv": {"workspace_id": workspace, "env_keys": ["openai_api_key"]},
    }


@pytest.mark.parametrize("name", [method.name for method in SERVICE.methods])
def test_every_rpc_answers_alike_in_json_in_binary_and_over_grpc_web(http: Gateway, workspace: str, name: str) -> None:
    method = SERVICE.methods_by_name[name]
    request_type, answer_type = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    asked = requests(workspace).get(name, {})
    request = json_format.ParseDict(asked, request_type())
    http.ask("POST", f"{PREFIX}/{name}", asked)  # so that a change has been made already

    in_json = http.ask("POST", f"{PREFIX}/{name}", asked)
    in_binary = http.ask(
        "POST", f"{PREFIX}/{name}", request.SerializeToString(), headers={"content-type": "application/proto"}
    )
    over_grpc_web = GrpcWeb(http, f"{PREFIX}/{name}", request)

    assert (in_json.status, in_binary.status) == (200, 200)
    assert (in_json.headers["content-type"], in_binary.headers["content-type"]) == (
        "application/json",
        "application/proto",
    )
    answers = [
        answer_type.FromString(in_binary.body),
        json_format.Parse(in_json.body, answer_type()),
        answer_type.FromString(over_grpc_web.messages[0]),
    ]
    for message in answers:
        assert message.ByteSize()
        if "read_time" in message.DESCRIPTOR.fields_by_name:
            message.ClearField("read_time")  # the moment of the call
    assert answers[0] == answers[1] == answers[2]
    assert over_grpc_web.trailers["grpc-status"] == "0"
    for each in (in_json, in_binary, over_grpc_web.answer):
        assert each.headers["x-request-id"]


def reasons(answer: Answer) -> list[str]:
    """The reasons among the details of an error of Connect."""
    details = answer.json.get("details", [])
    found = []
    for each in details:
        if each["type"] == "google.rpc.ErrorInfo":
            info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(each["value"] + "==="))
            assert info.domain == "billing.molecule"
            assert each["debug"] == {"reason": info.reason, "domain": info.domain}
            found.append(info.reason)
    return found


# id: method, request, token, HTTP status, code, reason
REFUSALS: Final[dict[str, tuple[str, dict[str, Any], str | None, int, str, str]]] = {
    "no change": ("Set", {"workspace_id": UNKNOWN}, TOKENS["admin"], 400, "invalid_argument", "CHANGE_REQUIRED"),
    "a malformed id": ("Get", {"workspace_id": "x"}, TOKENS["admin"], 400, "invalid_argument", "WORKSPACE_ID_INVALID"),
    "no workspace": ("Get", {"workspace_id": UNKNOWN}, TOKENS["admin"], 404, "not_found", "WORKSPACE_NOT_FOUND"),
    "no token": ("Resolve", {}, None, 401, "unauthenticated", "CREDENTIALS_INVALID"),
    "a strange token": ("Resolve", {}, "bgrpc_x", 401, "unauthenticated", "CREDENTIALS_INVALID"),
    "a reader that writes": (
        "Set",
        {"workspace_id": UNKNOWN, "inherit": {}},
        TOKENS["reader"],
        403,
        "permission_denied",
        "ROLE_DENIED",
    ),
    "an unknown field": (
        "Set",
        {"workspace_id": UNKNOWN, "inherit": {}, "validateonly": True},
        TOKENS["admin"],
        400,
        "invalid_argument",
        "TEXT_INVALID",
    ),
    "an unknown mode": (
        "Set",
        {"workspace_id": UNKNOWN, "mode": "BYOK"},
        TOKENS["admin"],
        400,
        "invalid_argument",
        "TEXT_INVALID",
    ),
    "another type": ("Get", {"workspace_id": 7}, TOKENS["admin"], 400, "invalid_argument", "TEXT_INVALID"),
}


def full(start: str) -> str:
    return next(f"{PREFIX}/{method.name}" for method in SERVICE.methods if method.name.startswith(start))


@pytest.mark.parametrize(("rpc", "asked", "token", "status", "code", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_has_the_contracts_reason_in_json(
    http: Gateway, rpc: str, asked: dict[str, Any], token: str | None, status: int, code: str, reason: str
) -> None:
    answer = http.ask("POST", full(rpc), asked, token=token)
    assert (answer.status, answer.json["code"], reasons(answer)) == (status, code, [reason])


def test_a_refusal_has_its_details_over_grpc_web(http: Gateway) -> None:
    call = GrpcWeb(http, full("Get"), service_pb.GetWorkspaceBillingModeRequest(workspace_id=UNKNOWN))
    assert (call.messages, call.trailers["grpc-status"]) == ([], "5")
    (info, *_) = call.status.details
    unpacked = error_details_pb2.ErrorInfo()
    assert info.Unpack(unpacked)
    assert unpacked.reason == "WORKSPACE_NOT_FOUND"


def test_a_stale_etag_comes_with_the_current_state(http: Gateway, workspace: str) -> None:
    answer = http.ask("POST", full("Set"), {"workspace_id": workspace, "inherit": {}, "etag": "1"})
    assert (answer.status, reasons(answer)) == (409, ["ETAG_STALE"])
    (now,) = [each for each in answer.json["details"] if each["type"] == "molecule.billing.v1.WorkspaceBillingMode"]
    assert now["debug"]["resolution"]["workspaceId"] == workspace


def test_a_misspelt_field_writes_nothing(http: Gateway, module_database_url: str, workspace: str) -> None:
    asked = {"workspace_id": workspace, "mode": "BILLING_MODE_BYOK", "validate_onyl": True}
    answer = http.ask("POST", full("Set"), asked)
    assert (answer.status, reasons(answer)) == (400, ["TEXT_INVALID"])
    assert "validate_onyl" in answer.json["message"]
    assert stored_mode(module_database_url, workspace) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 10_000, b'{"secret_keys": {"K": "sk-secret"}}'])
def test_a_body_that_is_no_message_is_refused_and_not_repeated(http: Gateway, body: bytes) -> None:
    answer = http.ask("POST", full("Validate"), body)
    assert (answer.status, reasons(answer)) == (400, ["TEXT_INVALID"])
    assert b"secret" not in base64.b64encode(answer.body) + answer.body
    binary = http.ask("POST", full("Validate"), b"\xff\xff", headers={"content-type": "application/proto"})
    assert reasons(binary) == ["TEXT_INVALID"]


def test_a_body_over_the_limit_is_refused_whether_its_length_is_said_or_not(http: Gateway) -> None:
    said = http.ask(
        "POST", full("Plan"), b'{"env_keys": ["' + b"A" * (4 << 20) + b'"]}', headers={"expect": "100-continue"}
    )
    assert said.status == 413
    with socket.create_connection(("127.0.0.1", http.process.port), timeout=PATIENCE) as connection:
        head = f"POST {full('Plan')} HTTP/1.1\r\nHost: {http.authority}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(80):
            connection.sendall(piece)
        assert connection.recv(100).startswith(b"HTTP/1.1 429 ")


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto"])
def test_grpc_itself_is_sent_to_the_server(http: Gateway, kind: str) -> None:
    assert http.ask("POST", full("Resolve"), b"\0\0\0\0\0", headers={"content-type": kind}).status == 415


def test_no_rpc_can_be_called_by_a_link(http: Gateway, workspace: str) -> None:
    query = "?connect=v1&encoding=json&message=%7B%22workspace_id%22%3A%22" + workspace + "%22%7D"
    for name in SERVICE.methods_by_name:
        assert http.ask("GET", f"{PREFIX}/{name}{query}").status == 405
    assert http.ask("POST", f"{PREFIX}/NoSuchMethod", {}).status == 404
    assert http.ask("POST", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", {}).status == 404


def test_the_callers_deadline_is_the_calls(http: Gateway) -> None:
    answer = http.ask("POST", full("Resolve"), {}, headers={"connect-timeout-ms": "0"})
    assert (answer.status, answer.json["code"]) == (504, "deadline_exceeded")
    assert http.ask("POST", full("Resolve"), {}, headers={"connect-timeout-ms": "5000"}).status == 200


def test_a_server_that_is_down_is_unavailable_and_its_address_unsaid(tmp_path: Any) -> None:
    with gateway(tmp_path / "gateway", "--address", "127.0.0.1:1", "--timeout", "1") as running:
        answer = running.ask("POST", full("Resolve"), {})
    assert (answer.status, reasons(answer)) == (503, ["SERVER_UNREACHABLE"])
    assert b"127.0.0.1" not in answer.body


def test_pages_of_a_listed_origin_may_call_and_no_others(http: Gateway) -> None:
    asks = {"access-control-request-method": "POST"}
    asks["access-control-request-headers"] = (
        "authorization,connect-protocol-version,content-type,x-grpc-web,x-user-agent"
    )
    preflight = http.ask("OPTIONS", full("Resolve"), token=None, headers={**asks, "origin": ORIGIN})
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, ORIGIN)
    exposed = http.ask("POST", full("Resolve"), {}, headers={"origin": ORIGIN}).headers["access-control-expose-headers"]
    assert {"grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"} <= set(exposed.split(", "))
    for origin in ("https://stranger.example", "null"):
        assert http.ask("OPTIONS", full("Resolve"), token=None, headers={**asks, "origin": origin}).status == 403
        assert http.ask("POST", full("Resolve"), {}, headers={"origin": origin}).status == 403


def test_health_is_served_without_a_token(http: Gateway) -> None:
    answer = http.ask("POST", f"{HEALTH}/Check", {}, token=None)
    assert (answer.status, answer.json) == (200, {"status": "SERVING"})


@pytest.mark.parametrize("kind", ["application/connect+json", "application/grpc-web+proto"])
def test_a_stream_answers_as_it_goes_and_ends_with_its_caller(http: Gateway, place: Site, kind: str) -> None:
    message = b"{}" if "json" in kind else b""
    body = enveloped(message)
    with socket.create_connection(("127.0.0.1", http.process.port), timeout=PATIENCE) as connection:
        head = f"POST {HEALTH}/Watch HTTP/1.1\r\nHost: {http.authority}\r\nContent-Type: {kind}\r\n"
        connection.sendall(f"{head}X-Request-Id: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        received = b""
        while b"SERVING" not in received and b"\x08\x01" not in received:
            piece = connection.recv(1000)
            assert piece, received
            received += piece
        assert received.startswith(b"HTTP/1.1 200 ")
    assert place.server.logged("call", request_id=kind)["code"] == "CANCELLED"


def test_a_stream_ends_at_its_deadline(http: Gateway) -> None:
    headers = {"content-type": "application/connect+json", "connect-timeout-ms": "300"}
    answer = http.ask("POST", f"{HEALTH}/Watch", enveloped(b"{}"), headers=headers)
    first, *_, (flags, end) = frames(answer.body)
    assert (
        json_format.Parse(first[1], health_pb2.HealthCheckResponse()).status == health_pb2.HealthCheckResponse.SERVING
    )
    assert flags == END_STREAM
    assert json.loads(end)["error"]["code"] == "deadline_exceeded"


def test_curl_calls_in_json(curl: str, http: Gateway, workspace: str) -> None:
    token = f"Authorization: Bearer {TOKENS['admin']}"
    command = [
        curl,
        "--silent",
        "--header",
        token,
        "--json",
        json.dumps({"workspaceId": workspace}),
        http.url + full("Get"),
    ]
    said = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True).stdout
    answer = json_format.Parse(said, service_pb.GetWorkspaceBillingModeResponse())
    assert answer.billing_mode.resolution.resolved_mode == pb.BILLING_MODE_PLATFORM_MANAGED
