"""The contract as an operator sees it: real grpcurl, which knows nothing but what reflection tells it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from billing_grpc.secret_keys import KeyList
from tests.support.polling import PATIENCE, until
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

BLOCKED_KEYS = tuple(sorted(KeyList().names))

SERVICE: Final = "molecule.billing.v1.BillingModeService"
UNKNOWN: Final = "5f0e9b0e-0000-4000-8000-000000000000"

SERVICES: Final = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    SERVICE,
]
RPCS: Final = [
    "BatchResolveBillingModes",
    "GetWorkspaceBillingMode",
    "ListBillingModeChanges",
    "ListWorkspaceBillingModes",
    "PlanProvisionEnv",
    "ResolveBillingMode",
    "SetWorkspaceBillingMode",
    "SummarizeBillingModes",
    "ValidateSecretWrite",
]
DETAILS: Final = [
    "google.rpc.ErrorInfo",
    "google.rpc.BadRequest",
    "google.rpc.RetryInfo",
    "molecule.billing.v1.BillingModeResolution",
]

INVALID, NOT_FOUND, RESOURCE_EXHAUSTED = 3, 5, 8
# id: RPC, request, status code, reason, field
REFUSALS: Final[dict[str, tuple[str, dict[str, Any], int, str, str | None]]] = {
    "a set without a change": ("Set", {"workspace_id": UNKNOWN}, INVALID, "CHANGE_REQUIRED", "change"),
    "a set to no mode": (
        "Set",
        {"workspace_id": UNKNOWN, "mode": "BILLING_MODE_UNSPECIFIED"},
        INVALID,
        "MODE_INVALID",
        "mode",
    ),
    "a set to an unknown number": ("Set", {"workspace_id": UNKNOWN, "mode": 99}, INVALID, "MODE_INVALID", "mode"),
    "a reason of two lines": (
        "Set",
        {"workspace_id": UNKNOWN, "inherit": {}, "reason": "one\ntwo"},
        INVALID,
        "TEXT_INVALID",
        "reason",
    ),
    "a set of an unknown workspace": (
        "Set",
        {"workspace_id": UNKNOWN, "inherit": {}},
        NOT_FOUND,
        "WORKSPACE_NOT_FOUND",
        None,
    ),
    "an unknown workspace": ("Get", {"workspace_id": UNKNOWN}, NOT_FOUND, "WORKSPACE_NOT_FOUND", None),
    "a malformed id": ("Get", {"workspace_id": f"{{{UNKNOWN}}}"}, INVALID, "WORKSPACE_ID_INVALID", "workspace_id"),
    "no id": ("Get", {}, INVALID, "WORKSPACE_ID_INVALID", "workspace_id"),
    "a malformed id among others": (
        "Batch",
        {"workspace_ids": [UNKNOWN, "urn:uuid:" + UNKNOWN]},
        INVALID,
        "WORKSPACE_ID_INVALID",
        "workspace_ids[1]",
    ),
    "1001 ids": ("Batch", {"workspace_ids": [UNKNOWN] * 1001}, INVALID, "COUNT_OUT_OF_RANGE", "workspace_ids"),
    "no scope": ("Validate", {"secret_keys": ["OPENAI_API_KEY"]}, INVALID, "SCOPE_REQUIRED", "scope"),
    "an empty key": (
        "Validate",
        {"org_wide": {}, "secret_keys": ["OPENAI_API_KEY", " "]},
        INVALID,
        "SECRET_KEY_INVALID",
        "secret_keys[1]",
    ),
    "no keys": ("Validate", {"org_wide": {}}, INVALID, "COUNT_OUT_OF_RANGE", "secret_keys"),
    "a page token that is none": ("List", {"page_token": "x"}, INVALID, "PAGE_TOKEN_INVALID", "page_token"),
}


class Grpcurl:
    """grpcurl, pointed at one address."""

    def __init__(self, binary: str, address: str) -> None:
        self._binary = binary
        self._address = address

    def run(self, *arguments: str, request: str | None = None, flags: tuple[str, ...] = ()) -> tuple[int, str, str]:
        data = () if request is None else ("-d", "@")
        command = [self._binary, "-plaintext", *flags, *data, self._address, *arguments]
        ended = subprocess.run(command, input=request, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return ended.returncode, ended.stdout, ended.stderr

    def say(self, *arguments: str) -> str:
        code, out, err = self.run(*arguments)
        assert code == 0, err
        return out

    def ask(self, method: str, **request: Any) -> dict[str, Any]:
        code, out, err = self.run(method, request=json.dumps(request))
        assert code == 0, err
        answer: dict[str, Any] = json.loads(out)
        return answer

    def refusal(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        code, _, err = self.run(method, request=json.dumps(request), flags=("-format-error",))
        assert code != 0
        status: dict[str, Any] = json.loads(err)
        return status


@pytest.fixture(scope="module")
def server(grpcurl: str, module_serve: Serve, module_database_url: str) -> Iterator[Server]:
    del grpcurl  # where it is missing, no server has to start
    with tempfile.TemporaryDirectory(prefix="billing-e2e-") as made:
        listen = f"127.0.0.1:0,unix:{Path(made) / 'socket'}"
        yield module_serve(
            settings={"DATABASE_URL": as_service(module_database_url), "BILLING_GRPC_LISTEN": listen}, listeners=2
        )


@pytest.fixture(params=[0, 1], ids=["tcp", "unix"])
def curl(request: pytest.FixtureRequest, grpcurl: str, server: Server) -> Grpcurl:
    return Grpcurl(grpcurl, server.addresses[request.param])


def method(start: str) -> str:
    return f"{SERVICE}/{next(name for name in RPCS if name.startswith(start))}"


def test_the_services_can_be_listed(curl: Grpcurl) -> None:
    assert curl.say("list").split() == SERVICES


def test_the_service_describes_every_rpc(curl: Grpcurl) -> None:
    assert curl.say("list", SERVICE).split() == [f"{SERVICE}.{name}" for name in RPCS]
    description = curl.say("describe", SERVICE)
    assert [name for name in RPCS if f"rpc {name} (" in description] == RPCS


# id: what is described, and a part of how
DESCRIBED: Final = {
    f"{SERVICE}.ResolveBillingMode": f"{SERVICE}.ResolveBillingMode is a method:",
    "grpc.health.v1.Health.Watch": "grpc.health.v1.Health.Watch is a method:",
    "grpc.reflection.v1.ServerReflection": "grpc.reflection.v1.ServerReflection is a service:",
    "grpc.reflection.v1.ServerReflection.ServerReflectionInfo": "is a method:",
    "grpc.reflection.v1.ServerReflectionRequest": "is a message:",
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": "is a method:",
    "molecule.billing.v1.BillingMode": "is an enum:",
    "molecule.billing.v1.BILLING_MODE_BYOK": "is an enum value:",
    "molecule.billing.v1.BillingModeResolution.org_default": "is a field:",
    "molecule.billing.v1.SetWorkspaceBillingModeRequest.change": "is a one-of:",
}


@pytest.mark.parametrize(("symbol", "described"), DESCRIBED.items(), ids=DESCRIBED)
def test_every_kind_of_symbol_can_be_described(curl: Grpcurl, symbol: str, described: str) -> None:
    assert described in curl.say("describe", symbol)


def test_reflection_lists_itself_in_both_versions(curl: Grpcurl) -> None:
    for name in SERVICES:
        assert curl.say("list", name)


@pytest.mark.parametrize("symbol", [f"{SERVICE}.NoSuchMethod", "grpc.reflection.v1.No", "NoSuch", f"{SERVICE}."])
def test_a_symbol_that_does_not_exist_is_not_found(curl: Grpcurl, symbol: str) -> None:
    code, _, err = curl.run("describe", symbol)
    assert code != 0
    assert "not found" in err.lower()


def test_buf_lists_the_methods(server: Server) -> None:
    buf = str(Path(sys.executable).with_name("buf"))
    command = [
        buf,
        "curl",
        "--protocol=grpc",
        "--http2-prior-knowledge",
        "--list-methods",
        f"http://{server.addresses[0]}",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert {f"{SERVICE}/{name}" for name in RPCS} <= set(ended.stdout.split())


@pytest.mark.parametrize("name", DETAILS)
def test_what_travels_in_error_details_can_be_described(curl: Grpcurl, name: str) -> None:
    assert curl.say("describe", name).startswith(f"{name} is a message:")


def test_a_workspace_goes_to_byok_and_back(curl: Grpcurl, workspace: str) -> None:
    resolved = curl.ask(method("Resolve"), workspace_id=workspace.upper())["resolution"]
    assert resolved["workspaceId"] == workspace
    assert resolved["resolvedMode"] == "BILLING_MODE_PLATFORM_MANAGED"
    assert resolved["source"] == "BILLING_MODE_SOURCE_CONSTANT_FALLBACK"

    changed = curl.ask(method("Set"), workspace_id=workspace, mode="BILLING_MODE_BYOK", reason="their own key")
    assert changed["previous"] == resolved
    got = curl.ask(method("Get"), workspace_id=workspace)
    assert got["billingMode"] == changed["billingMode"]
    assert got["billingMode"]["resolution"]["resolvedMode"] == "BILLING_MODE_BYOK"
    assert got["billingMode"]["resolution"]["source"] == "BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE"
    assert got["billingMode"]["resolution"]["workspaceOverride"] == "byok"

    cleared = curl.ask(method("Set"), workspace_id=workspace, inherit={})
    assert cleared["previous"] == got["billingMode"]["resolution"]
    assert curl.ask(method("Resolve"), workspace_id=workspace)["resolution"] == resolved


def test_a_vendor_key_is_refused_and_after_byok_allowed(curl: Grpcurl, workspace: str) -> None:
    request = {"workspace_id": workspace, "secret_keys": [" openai_api_key", "DATABASE_PASSWORD", "MOLECULE_LLM_TOKEN"]}

    def verdicts() -> list[str]:
        return [each["verdict"] for each in curl.ask(method("Validate"), **request)["verdicts"]]

    before = curl.ask(method("Validate"), **request)
    assert "allowed" not in before  # false is not printed
    assert verdicts() == [
        "SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED",
        "SECRET_VERDICT_ALLOWED",
        "SECRET_VERDICT_BLOCKED_RESERVED",
    ]
    assert f"billing-grpc set {workspace} byok" in before["verdicts"][0]["message"]

    curl.ask(method("Set"), workspace_id=workspace, mode="BILLING_MODE_BYOK")
    assert verdicts() == ["SECRET_VERDICT_ALLOWED", "SECRET_VERDICT_ALLOWED", "SECRET_VERDICT_BLOCKED_RESERVED"]
    assert curl.ask(method("Validate"), workspace_id=workspace, secret_keys=["OPENAI_API_KEY"])["allowed"] is True


def test_a_plan_strips_every_vendor_key_until_the_workspace_pays_itself(curl: Grpcurl, workspace: str) -> None:
    closed = curl.ask(method("Plan"), workspace_id=workspace, env_keys=["openai_api_key", "PATH"])
    assert closed["stripKeys"] == ["openai_api_key"]
    assert closed["setEnv"] == dict.fromkeys(
        ("MOLECULE_LLM_BILLING_MODE", "MOLECULE_LLM_BILLING_MODE_RESOLVED"), "platform_managed"
    )
    assert closed["routeViaPlatformProxy"] is True

    curl.ask(method("Set"), workspace_id=workspace, mode="BILLING_MODE_BYOK")
    own = curl.ask(method("Plan"), workspace_id=workspace, env_keys=["openai_api_key"])
    assert set(own["setEnv"].values()) == {"byok"}
    assert not own.keys() & {"stripKeys", "routeViaPlatformProxy"}  # empty and false are not printed


def test_a_batch_answers_in_order_and_every_duplicate(curl: Grpcurl, module_database_url: str, workspace: str) -> None:
    own = add_workspace(module_database_url, "byok")
    ids = [workspace, own, UNKNOWN, own]
    answer = curl.ask(method("Batch"), workspace_ids=ids)["resolutions"]
    assert [each["workspaceId"] for each in answer] == ids
    assert [each["resolvedMode"].removeprefix("BILLING_MODE_") for each in answer] == [
        "PLATFORM_MANAGED",
        "BYOK",
        "PLATFORM_MANAGED",
        "BYOK",
    ]


@pytest.mark.parametrize(("rpc", "request_", "code", "reason", "field"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_names_its_reason_and_the_field(
    curl: Grpcurl, rpc: str, request_: dict[str, Any], code: int, reason: str, field: str | None
) -> None:
    status = curl.refusal(method(rpc), request_)
    info, *others = status["details"]
    assert status["code"] == code
    assert info == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "domain": "billing.molecule",
        "reason": reason,
    }
    violations = [violation["field"] for other in others for violation in other["field_violations"]]
    assert violations == ([] if field is None else [field])


def test_the_details_of_a_refusal_are_readable_at_a_terminal(curl: Grpcurl) -> None:
    _, _, shown = curl.run(method("Set"), request=json.dumps({"workspace_id": UNKNOWN}))
    assert "Code: InvalidArgument" in shown
    assert '"reason": "CHANGE_REQUIRED"' in shown
    assert '"field": "change"' in shown


def test_an_oversized_message_is_refused_by_the_transport(curl: Grpcurl) -> None:
    status = curl.refusal(method("Plan"), {"env_keys": ["A" * 5_000_000]})
    assert status["code"] == RESOURCE_EXHAUSTED
    assert "details" not in status


@pytest.mark.parametrize("service", ["", SERVICE], ids=["overall", "the service"])
def test_health_is_served(curl: Grpcurl, service: str) -> None:
    assert curl.ask("grpc.health.v1.Health/Check", service=service) == {"status": "SERVING"}


def test_health_tells_whether_administration_works(curl: Grpcurl) -> None:
    until(lambda: curl.ask("grpc.health.v1.Health/Check", service=f"{SERVICE}/administration") == {"status": "SERVING"})


def test_the_health_of_an_unknown_service_is_not_found(curl: Grpcurl) -> None:
    assert curl.refusal("grpc.health.v1.Health/Check", {"service": "nobody"})["code"] == NOT_FOUND
