"""What a server leaves in its log, and what of it never reaches a client."""

import os
import pty
from pathlib import Path
from typing import Any, Final, cast

import grpc
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

UNKNOWN: Final = "5f0e9b0e-0000-4000-8000-000000000000"
NEW, MISSING = object(), object()
FOR_SAFETY: Final = "billing mode could not be read, defaulting to platform_managed for safety"
PASSWORD: Final = "hunter2"

# id: stored override, org default, the end of the line
PLANS: Final[dict[str, tuple[object, str, str]]] = {
    "byok": ("byok", "", "resolved=byok source=workspace_override org_default=platform_managed"),
    "disabled": ("disabled", "byok", "resolved=disabled source=workspace_override org_default=byok"),
    "platform_managed": (
        "platform_managed",
        "byok",
        "resolved=platform_managed source=workspace_override org_default=byok",
    ),
    "inherits byok": (None, "byok", "resolved=byok source=org_default org_default=byok"),
    "inherits disabled": (None, "disabled", "resolved=disabled source=org_default org_default=disabled"),
    "inherits platform_managed": (
        None,
        "platform_managed",
        "resolved=platform_managed source=org_default org_default=platform_managed",
    ),
    "nothing to inherit": (None, "", "resolved=platform_managed source=constant_fallback org_default=platform_managed"),
    "garbage to inherit": (
        None,
        "free",
        "resolved=platform_managed source=constant_fallback org_default=platform_managed",
    ),
    "corrupt, org open": ("BYOK", "byok", "resolved=platform_managed source=constant_fallback org_default=byok"),
    "corrupt, org closed": (
        "BYOK",
        "platform_managed",
        "resolved=platform_managed source=org_default org_default=platform_managed",
    ),
    "no such row": (MISSING, "byok", "resolved=byok source=org_default org_default=byok"),
    "before it exists": (NEW, "byok", "resolved=byok source=org_default org_default=byok"),
    "before it exists, closed": (
        NEW,
        "",
        "resolved=platform_managed source=constant_fallback org_default=platform_managed",
    ),
}

# id: a call that decides, and how many resolutions in it are degraded
DEGRADED: Final[dict[str, tuple[str, Any, int]]] = {
    "resolve": ("ResolveBillingMode", service_pb.ResolveBillingModeRequest(workspace_id=UNKNOWN), 1),
    "batch": ("BatchResolveBillingModes", service_pb.BatchResolveBillingModesRequest(workspace_ids=[UNKNOWN] * 3), 3),
    "validate": (
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(workspace_id=UNKNOWN, secret_keys=["HF_TOKEN"]),
        1,
    ),
    "plan": ("PlanProvisionEnv", service_pb.PlanProvisionEnvRequest(workspace_id=UNKNOWN), 1),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published") / "mode"


@pytest.fixture(scope="module")
def server(module_serve: Serve, module_database_url: str, published: Path) -> Server:
    with psycopg.connect(module_database_url) as connection:  # a corrupt override gets past no CHECK
        connection.execute("ALTER TABLE workspaces DROP CONSTRAINT workspaces_llm_billing_mode_check")
    return module_serve(
        settings={"DATABASE_URL": as_service(module_database_url), "MOLECULE_LLM_BILLING_MODE_FILE": published}
    )


@pytest.fixture(scope="module")
def unmigrated(module_serve: Serve, cluster_url: str) -> Server:
    """A server over the database that every cluster has, and nobody migrates."""
    url = make_conninfo(cluster_url, dbname="postgres", password=PASSWORD)
    return module_serve(settings={"DATABASE_URL": url, "MOLECULE_LLM_BILLING_MODE": "byok"})


@pytest.mark.parametrize(("override", "org_default", "expected"), PLANS.values(), ids=PLANS.keys())
def test_a_plan_leaves_one_line_in_exactly_these_words(
    server: Server, module_database_url: str, published: Path, override: object, org_default: str, expected: str
) -> None:
    published.write_text(org_default)
    workspace = "" if override is NEW else UNKNOWN
    if override not in {NEW, MISSING}:
        workspace = add_workspace(module_database_url, cast("str | None", override))
    before = len(server.records("workspace_provision"))
    server.stub.PlanProvisionEnv(service_pb.PlanProvisionEnvRequest(workspace_id=workspace.upper()), timeout=30)
    (record,) = server.records("workspace_provision")[before:]
    assert record["event"] == f"workspace_provision: billing mode workspace={workspace} {expected}"
    assert record["level"] == "info"


@pytest.mark.parametrize(("rpc", "request_", "affected"), DEGRADED.values(), ids=DEGRADED.keys())
def test_a_degraded_decision_leaves_a_warning(unmigrated: Server, rpc: str, request_: Any, affected: int) -> None:
    seen, plans = len(unmigrated.records(FOR_SAFETY)), len(unmigrated.records("workspace_provision"))
    getattr(unmigrated.stub, rpc)(request_, timeout=30)
    (record,) = unmigrated.records(FOR_SAFETY)[seen:]
    assert (
        record.items()
        >= {
            "level": "warning",
            "workspace": UNKNOWN,
            "reason": "SCHEMA_NOT_READY",
            "affected": affected,
        }.items()
    )
    assert len(unmigrated.records("workspace_provision")) - plans == (rpc == "PlanProvisionEnv")


def test_a_blocked_write_leaves_who_what_where_and_why(
    server: Server, module_database_url: str, published: Path
) -> None:
    published.write_text("platform_managed")
    workspace = add_workspace(module_database_url)
    request = service_pb.ValidateSecretWriteRequest(
        workspace_id=workspace, secret_keys=[" openai_api_key", "HARMLESS", "molecule_llm_token"]
    )
    server.stub.ValidateSecretWrite(request, timeout=30)
    blocked = [each for each in server.records("secret write blocked") if each["workspace"] == workspace]
    fields = ("level", "key", "principal", "mode", "source")
    assert [tuple(each[field] for field in fields) for each in blocked] == [
        ("info", "OPENAI_API_KEY", "local", "platform_managed", "org_default"),
        ("info", "MOLECULE_LLM_TOKEN", "local", "platform_managed", "org_default"),
    ]


def test_a_change_leaves_from_and_to(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url, "byok")
    request = service_pb.SetWorkspaceBillingModeRequest(
        workspace_id=workspace, mode=pb.BILLING_MODE_DISABLED, reason="closed"
    )
    for _ in range(2):  # the second changes nothing
        server.stub.SetWorkspaceBillingMode(request, timeout=30)
    (record,) = [each for each in server.records("mode changed") if each["workspace"] == workspace]
    assert (
        record.items()
        >= {
            "previous_override": "byok",
            "new_override": "disabled",
            "principal": "local",
            "reason": "closed",
        }.items()
    )


def test_the_drivers_text_is_in_the_log_and_in_no_answer(unmigrated: Server) -> None:
    texts = [str(getattr(unmigrated.stub, rpc)(request, timeout=30)) for rpc, request, _ in DEGRADED.values()]
    for call, request in (
        (unmigrated.stub.GetWorkspaceBillingMode, service_pb.GetWorkspaceBillingModeRequest(workspace_id=UNKNOWN)),
        (
            unmigrated.stub.SetWorkspaceBillingMode,
            service_pb.SetWorkspaceBillingModeRequest(workspace_id=UNKNOWN, inherit=pb.Inherit()),
        ),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            cast("Any", call)(request, timeout=30)
        failed = cast("grpc.Call", raised.value)
        texts.append(f"{failed.code()} {failed.details()} {list(failed.trailing_metadata() or ())}")
    assert unmigrated.logged("storage failed")["text"].startswith('relation "workspaces" does not exist')
    for text in texts:
        assert "SCHEMA_NOT_READY" in text
        for driver in ("relation", "SELECT", "psycopg", "UndefinedTable", "LINE 1", ".s.PGSQL", PASSWORD):
            assert driver not in text
    assert PASSWORD not in unmigrated.stderr


def test_an_unreachable_database_is_in_the_log_and_its_address_in_no_answer(serve: Serve) -> None:
    url = f"postgresql://somebody:{PASSWORD}@127.0.0.1:1/nowhere"
    server = serve(settings={"DATABASE_URL": url})
    assert "Connection refused" in server.logged("cannot connect to the database")["text"]
    answer = server.resolve(UNKNOWN)
    assert answer.error.reason == "DATABASE_UNREACHABLE"
    for driver in ("127.0.0.1", "refused", "somebody", "nowhere", PASSWORD):
        assert driver not in str(answer)
    assert PASSWORD not in server.stderr


def test_logs_are_json_on_standard_error_and_addresses_alone_on_standard_output(server: Server) -> None:
    assert server.stdout == f"listening on {server.address}\n"
    for record in server.records():
        assert {"event", "level", "logger", "timestamp"} <= record.keys()


def test_logs_are_lines_for_people_on_a_terminal(serve: Serve, module_database_url: str) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        with os.fdopen(theirs, "wb"):
            server = serve(settings={"DATABASE_URL": as_service(module_database_url)}, stderr=theirs)
        shown = b""
        while b"serving" not in shown:
            shown += terminal.read(1024)
        server.stop()
    assert not shown.startswith(b"{")


def test_a_higher_level_leaves_out_the_routine(serve: Serve, module_database_url: str) -> None:
    server = serve(settings={"DATABASE_URL": as_service(module_database_url), "BILLING_GRPC_LOG_LEVEL": "warning"})
    server.stub.PlanProvisionEnv(service_pb.PlanProvisionEnvRequest(), timeout=30)
    assert server.stop() == 0
    assert server.stderr == ""
