"""What a decision leaves in the log and in the counters, word for word where operators search for it."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from billing_grpc.model import (
    ChangeNote,
    OverrideChange,
    Principal,
    Resolution,
    ResolutionError,
    Role,
    SecretKeyVerdict,
    SecretVerdict,
    StoredOverride,
    WorkspaceRecord,
)
from billing_grpc.resolver import resolve, resolve_new_workspace
from billing_grpc.server.decision_log import DecisionLog
from billing_grpc.server.telemetry.logs import RARELY
from billing_grpc.server.telemetry.metrics import Metrics

WORKSPACE = "7f1fc6a0-0000-4000-8000-000000000001"
DEGRADED = resolve(WORKSPACE, ResolutionError("DATABASE_TIMEOUT", "late"), "byok")
SOMEBODY = Principal("provisioner", Role.PROVISIONER)
OPEN = resolve(WORKSPACE, StoredOverride("byok"), None)


PLANS = {
    "open": (OPEN, f"workspace={WORKSPACE} resolved=byok source=workspace_override org_default=platform_managed"),
    "degraded": (
        DEGRADED,
        f"workspace={WORKSPACE} resolved=platform_managed source=constant_fallback org_default=byok",
    ),
    "no id": (
        resolve_new_workspace("disabled"),
        "workspace= resolved=disabled source=org_default org_default=disabled",
    ),
}


@pytest.mark.parametrize(("resolution", "words"), PLANS.values(), ids=PLANS)
def test_a_plan_leaves_one_line_in_exactly_the_contracts_words(resolution: Resolution, words: str) -> None:
    with capture_logs() as lines:
        DecisionLog(Metrics()).planned(resolution)

    (line,) = lines
    assert (line["log_level"], line["event"]) == ("info", f"workspace_provision: billing mode {words}")


def test_a_degraded_answer_warns_once_a_call_and_says_how_many() -> None:
    with capture_logs() as lines:
        DecisionLog(Metrics()).resolved([(OPEN, 1), (DEGRADED, 2)])

    (line,) = lines
    assert line["log_level"] == "warning"
    assert "defaulting to platform_managed for safety" in line["event"]
    assert (line["workspace"], line["reason"], line["org_default"], line["affected"]) == (
        WORKSPACE,
        "DATABASE_TIMEOUT",
        "byok",
        2,
    )


def test_an_answer_that_is_not_degraded_is_counted_and_not_logged() -> None:
    metrics = Metrics()
    with capture_logs() as lines:
        DecisionLog(metrics).resolved([(OPEN, 1)])

    assert lines == []
    labels = {"mode": "byok", "source": "workspace_override"}
    assert metrics.registry.get_sample_value("billing_grpc_resolutions_total", labels) == 1


@pytest.mark.parametrize("org_default", ["byok", "platform_managed", None])
def test_a_corrupt_override_is_counted_and_warned_of_once_a_call_without_its_text(org_default: str | None) -> None:
    corrupt = resolve(WORKSPACE, StoredOverride("BYOK"), org_default)
    metrics = Metrics()
    with capture_logs() as lines:
        DecisionLog(metrics).resolved([(OPEN, 1), (corrupt, 2)])

    (line,) = lines
    assert line["log_level"] == "warning"
    assert line["event"] in RARELY
    assert (line["workspace"], line["affected"]) == (WORKSPACE, 2)
    assert "BYOK" not in str(line)
    assert metrics.registry.get_sample_value("billing_grpc_corrupt_overrides_total") == 2


@pytest.mark.parametrize("resolution", [OPEN, resolve_new_workspace(None), DEGRADED], ids=["set", "new", "degraded"])
def test_what_is_no_corrupt_override_is_not_counted_as_one(resolution: Resolution) -> None:
    metrics = Metrics()
    DecisionLog(metrics).resolved([(resolution, 1)])

    assert metrics.registry.get_sample_value("billing_grpc_corrupt_overrides_total") == 0


def test_what_if_answers_are_logged_and_in_no_counter() -> None:
    metrics = Metrics()
    corrupt = resolve(WORKSPACE, StoredOverride("BYOK"), "byok", what_if=True)
    with capture_logs() as lines:
        DecisionLog(metrics).resolved([(OPEN, 1), (DEGRADED, 1), (corrupt, 1)], what_if=True)

    assert [line["log_level"] for line in lines] == ["warning", "warning"]
    counted = {
        sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.endswith(("resolutions_total", "overrides_total")) and sample.value
    }
    assert counted == {}


@pytest.mark.parametrize(
    ("verdict", "resolution", "mode"),
    [
        (SecretVerdict.BLOCKED_PLATFORM_MANAGED, DEGRADED, "platform_managed"),
        (SecretVerdict.BLOCKED_RESERVED, None, None),
    ],
)
def test_a_refusal_leaves_a_trace_with_the_keys_name(
    verdict: SecretVerdict, resolution: Resolution | None, mode: str | None
) -> None:
    metrics = Metrics()
    with capture_logs() as lines:
        refused = [("OPENAI_API_KEY", SecretKeyVerdict(" openai_api_key", verdict, "no"))]
        DecisionLog(metrics).blocked(refused, WORKSPACE, resolution, SOMEBODY)

    (line,) = lines
    assert line["log_level"] == "info"
    assert (line["workspace"], line["key"], line["principal"]) == (WORKSPACE, "OPENAI_API_KEY", "provisioner")
    assert (line["mode"], line["source"]) == (mode, None if resolution is None else resolution.source.value)
    counted = metrics.registry.get_sample_value("billing_grpc_blocked_secret_writes_total", {"verdict": verdict.value})
    assert counted == 1


def test_a_change_leaves_a_line_with_who_and_why() -> None:
    change = OverrideChange(WorkspaceRecord(StoredOverride(None)), WorkspaceRecord(StoredOverride("byok"), 7))
    with capture_logs() as lines:
        DecisionLog(Metrics()).changed(WORKSPACE, change, ChangeNote("controlplane", "own contract", "request-7"))

    (line,) = lines
    expected: dict[str, Any] = {
        "workspace": WORKSPACE,
        "previous_override": None,
        "new_override": "byok",
        "principal": "controlplane",
        "reason": "own contract",
        "request_id": "request-7",
    }
    assert expected.items() <= line.items()
