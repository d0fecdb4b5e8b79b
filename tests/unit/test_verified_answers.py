"""What a client takes from an answer: everything that the service says, and nothing that contradicts itself."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from billing_grpc import provision
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import fallback, verified, verified_keys
from billing_grpc.errors import AnswerInvalid
from billing_grpc.model import (
    NO_WORKSPACE,
    BillingMode,
    BillingModeSource,
    Resolution,
    ResolutionError,
    SecretVerdict,
    StoredOverride,
)
from billing_grpc.resolver import resolve, resolve_new_workspace
from billing_grpc.secret_keys import KeyList, normalise
from billing_grpc.wire import messages

BLOCKED_KEYS = tuple(sorted(KeyList().names))

WORKSPACE = "7f1fc6a0-0000-4000-8000-00000000000a"
KEYS = KeyList()
ERROR = ResolutionError("DATABASE_TIMEOUT", "late")

org_defaults = st.sampled_from([None, "", "platform_managed", "byok", " DISABLED ", "garbage"])
overrides = st.one_of(
    st.sampled_from([StoredOverride(None), NO_WORKSPACE, ERROR]),
    st.sampled_from(["platform_managed", "byok", "disabled", "BYOK", "", "x"]).map(StoredOverride),
)
resolutions = st.builds(lambda known, org: resolve(WORKSPACE, known, org), overrides, org_defaults)
key_names = st.sampled_from(["OPENAI_API_KEY", " hf_token ", "SLACK_TOKEN", "MOLECULE_LLM_X", "NEW_VENDOR_KEY"])
OPEN = resolve(WORKSPACE, StoredOverride("byok"), None)
SHUT = resolve(WORKSPACE, StoredOverride("platform_managed"), None)


@given(resolutions)
def test_every_resolution_of_the_rule_is_taken_as_it_is(resolution: Resolution) -> None:
    assert verified.resolution(messages.resolution_to_proto(resolution), WORKSPACE.upper()) == resolution


@given(org_defaults)
def test_every_resolution_without_a_workspace_is_taken_as_it_is(org_default: str | None) -> None:
    resolution = resolve_new_workspace(org_default)

    assert verified.resolution(messages.resolution_to_proto(resolution), "") == resolution


@given(
    st.builds(
        pb.BillingModeResolution,
        workspace_id=st.sampled_from([WORKSPACE, ""]),
        resolved_mode=st.integers(0, 4),
        source=st.integers(0, 4),
        workspace_override=st.sampled_from([None, "byok", "disabled", "platform_managed", "BYOK"]),
        org_default=st.integers(0, 4),
        error=st.sampled_from([None, pb.ResolutionError(), pb.ResolutionError(reason="DATABASE_TIMEOUT")]),
    ),
    st.sampled_from([WORKSPACE, ""]),
)
def test_whatever_is_sent_only_what_the_rule_could_have_said_is_open(
    message: pb.BillingModeResolution, asked: str
) -> None:
    try:
        taken = verified.resolution(message, asked)
    except AnswerInvalid:
        return

    if taken.mode is not BillingMode.PLATFORM_MANAGED:
        assert taken.error is None
        assert taken.workspace_id == asked
        if taken.source is BillingModeSource.WORKSPACE_OVERRIDE:
            assert asked
            assert taken.workspace_override == taken.mode.value
        else:
            assert taken.source is BillingModeSource.ORG_DEFAULT
            assert (taken.org_default, taken.workspace_override) == (taken.mode, None)


HONEST = messages.resolution_to_proto(OPEN)
INHERITED = messages.resolution_to_proto(resolve(WORKSPACE, StoredOverride(None), "byok"))
OTHER = "7f1fc6a0-0000-4000-8000-00000000000b"
CONTRADICTIONS: dict[str, tuple[pb.BillingModeResolution, str, dict[str, object]]] = {
    "another workspace": (HONEST, WORKSPACE, {"workspace_id": OTHER}),
    "no workspace": (INHERITED, WORKSPACE, {"workspace_id": ""}),
    "a workspace where none was asked about": (INHERITED, "", {}),
    "a mode of its own before it exists": (HONEST, "", {"workspace_id": ""}),
    "an unspecified mode": (HONEST, WORKSPACE, {"resolved_mode": 0}),
    "an unknown mode": (HONEST, WORKSPACE, {"resolved_mode": 4}),
    "an unspecified source": (HONEST, WORKSPACE, {"source": 0}),
    "an unknown source": (HONEST, WORKSPACE, {"source": 9}),
    "an unspecified org default": (HONEST, WORKSPACE, {"org_default": 0}),
    "an unknown org default": (HONEST, WORKSPACE, {"org_default": 7}),
    "an error beside an open mode": (HONEST, WORKSPACE, {"error": pb.ResolutionError(reason="DATABASE_TIMEOUT")}),
    "open by the fallback": (INHERITED, WORKSPACE, {"source": pb.BILLING_MODE_SOURCE_CONSTANT_FALLBACK}),
    "open by an override of another text": (HONEST, WORKSPACE, {"workspace_override": "BYOK"}),
    "open by another org default": (INHERITED, WORKSPACE, {"org_default": pb.BILLING_MODE_DISABLED}),
    "closed by the fallback beside an open org default": (
        INHERITED,
        WORKSPACE,
        {"resolved_mode": pb.BILLING_MODE_PLATFORM_MANAGED, "source": pb.BILLING_MODE_SOURCE_CONSTANT_FALLBACK},
    ),
    "inherited beside an override": (INHERITED, WORKSPACE, {"workspace_override": "disabled"}),
    "inherited beside a corrupt override": (INHERITED, WORKSPACE, {"workspace_override": "BYOK"}),
}


@pytest.mark.parametrize(("honest", "asked", "change"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_resolution_that_contradicts_itself_is_refused(
    honest: pb.BillingModeResolution, asked: str, change: dict[str, object]
) -> None:
    broken = pb.BillingModeResolution()
    broken.CopyFrom(honest)
    for name, value in change.items():
        if isinstance(value, Message):
            getattr(broken, name).CopyFrom(value)
        else:
            setattr(broken, name, value)

    with pytest.raises(AnswerInvalid):
        verified.resolution(broken, asked)


def test_an_error_without_a_reason_or_without_a_workspace_is_refused() -> None:
    closed_answer = messages.resolution_to_proto(resolve(WORKSPACE, ERROR, "byok"))
    assert verified.resolution(closed_answer, WORKSPACE).error == ERROR

    for broken in ({"error": pb.ResolutionError()}, {"workspace_override": "x"}):
        message = pb.BillingModeResolution(**{**_fields(closed_answer), **broken})
        with pytest.raises(AnswerInvalid):
            verified.resolution(message, WORKSPACE)
    with pytest.raises(AnswerInvalid):
        verified.resolution(pb.BillingModeResolution(**{**_fields(closed_answer), "workspace_id": ""}), "")


def _fields(message: pb.BillingModeResolution) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def test_a_resolution_that_ignores_what_was_supposed_is_refused() -> None:
    supposed = messages.resolution_to_proto(resolve(WORKSPACE, StoredOverride(None), "byok", what_if=True))

    assert verified.resolution(supposed, WORKSPACE, what_if=" BYOK").mode is BillingMode.BYOK
    for other in ("disabled", "", "garbage"):
        with pytest.raises(AnswerInvalid):
            verified.resolution(supposed, WORKSPACE, what_if=other)


@given(resolutions, st.lists(key_names, max_size=5), st.booleans())
def test_every_verdict_of_the_gate_is_taken_as_it_is(resolution: Resolution, sent: list[str], extended: bool) -> None:
    judges = KeyList(["NEW_VENDOR_KEY"] if extended else [])
    verdicts = [judges.judge(key, normalise(key) or "", resolution, org_wide=False) for key in sent]
    allowed = all(verdict.verdict is SecretVerdict.ALLOWED for verdict in verdicts)
    answer = service_pb.ValidateSecretWriteResponse(
        allowed=allowed,
        verdicts=[messages.verdict_to_proto(verdict) for verdict in verdicts],
        resolution=messages.resolution_to_proto(resolution),
    )

    decision = verified_keys.secret_write(answer, sent, WORKSPACE, KEYS)

    assert (decision.allowed, decision.verdicts, decision.resolution) == (allowed, tuple(verdicts), resolution)


@given(resolutions, st.lists(st.sampled_from(["openai_api_key", "PATH", " HF_TOKEN"])), st.booleans())
def test_every_plan_of_the_service_is_taken_as_it_is(
    resolution: Resolution, present: list[str], extended: bool
) -> None:
    plan = provision.plan(resolution, KeyList(["NEW_VENDOR_KEY"] if extended else []), present)

    taken = verified_keys.provision_plan(messages.plan_to_proto(plan), present, WORKSPACE, KEYS)

    # What `apply` removes besides is the client's own.
    assert replace(taken, blocked=None) == replace(plan, blocked=None)
    assert taken.blocked == (KEYS.names if plan.blocked else frozenset())


def _shut_plan() -> service_pb.PlanProvisionEnvResponse:
    return messages.plan_to_proto(provision.plan(SHUT, KEYS, ["openai_api_key"]))


def _open_plan() -> service_pb.PlanProvisionEnvResponse:
    return messages.plan_to_proto(provision.plan(OPEN, KEYS))


BROKEN_PLANS: dict[str, tuple[Callable[[], service_pb.PlanProvisionEnvResponse], Callable[..., object]]] = {
    "a platform variable is stripped": (_shut_plan, lambda plan: plan.strip_keys.append("molecule_llm_x")),
    "a vendor key is set": (_shut_plan, lambda plan: plan.set_env.update({"hf_token": "x"})),
    "a name is set that is none": (_shut_plan, lambda plan: plan.set_env.update({"HF_TOKEN=x": ""})),
    "a vendor key is set behind a byte order mark": (
        _shut_plan,
        lambda plan: plan.set_env.update({"\ufeffHF_TOKEN": "x"}),
    ),
    "a name of two lines is set": (_shut_plan, lambda plan: plan.set_env.update({"A\nB": "x"})),
    "an empty name is set": (_shut_plan, lambda plan: plan.set_env.update({"": "x"})),
    "a value ends early": (_shut_plan, lambda plan: plan.set_env.update({"A": "x\0y"})),
    "another mode is set": (_shut_plan, lambda plan: plan.set_env.update({"MOLECULE_LLM_BILLING_MODE": "byok"})),
    "the resolved mode is not set": (
        _shut_plan,
        lambda plan: plan.set_env.pop("MOLECULE_LLM_BILLING_MODE_RESOLVED"),
    ),
    "the proxy is not used": (_shut_plan, lambda plan: plan.ClearField("route_via_platform_proxy")),
    "an open mode strips": (_open_plan, lambda plan: plan.strip_keys.append("HF_TOKEN")),
    "an open mode uses the proxy": (_open_plan, lambda plan: setattr(plan, "route_via_platform_proxy", True)),
}


@pytest.mark.parametrize(("honest", "break_it"), BROKEN_PLANS.values(), ids=BROKEN_PLANS.keys())
def test_a_plan_that_contradicts_itself_is_refused(
    honest: Callable[[], service_pb.PlanProvisionEnvResponse], break_it: Callable[..., object]
) -> None:
    answer = honest()
    verified_keys.provision_plan(answer, ["openai_api_key"], WORKSPACE, KEYS)

    break_it(answer)

    with pytest.raises(AnswerInvalid):
        verified_keys.provision_plan(answer, ["openai_api_key"], WORKSPACE, KEYS)


def test_a_plan_strips_what_either_list_holds_in_every_spelling() -> None:
    answer = _shut_plan()
    answer.strip_keys.append("ACME_TOKEN")
    env = ["new_vendor_key", "acme_token", "\ufeffHF_TOKEN", "PATH"]

    keys = KeyList(["NEW_VENDOR_KEY"])

    plan = verified_keys.provision_plan(answer, env, WORKSPACE, keys)

    assert plan.strip_keys == tuple(sorted(env[:3]))
    assert plan.blocked == keys.names | {"ACME_TOKEN"}
    unknown = verified_keys.provision_plan(answer, None, WORKSPACE, keys)
    assert set(unknown.strip_keys) == {*keys.names, "ACME_TOKEN", "openai_api_key"}


def test_a_suspect_is_a_name_of_the_environment_that_stays() -> None:
    answer = _shut_plan()
    answer.suspect_keys.extend(["NEW_AI_API_KEY", "NOT_THERE_API_KEY", "new_vendor_key"])
    env = ["new_vendor_key", "NEW_AI_API_KEY", "PATH"]

    plan = verified_keys.provision_plan(answer, env, WORKSPACE, KeyList(["NEW_VENDOR_KEY"]))

    assert (plan.suspect_keys, plan.strip_keys) == (("NEW_AI_API_KEY",), ("new_vendor_key",))


def verdict_on(key: str, verdict: Any) -> SecretVerdict:
    answer = service_pb.ValidateSecretWriteResponse(resolution=messages.resolution_to_proto(SHUT))
    answer.verdicts.add(secret_key=key, verdict=verdict)
    return verified_keys.secret_write(answer, [key], WORKSPACE, KEYS).verdicts[0].verdict


def test_a_reserved_name_is_refused_as_reserved_or_the_answer_is_invalid() -> None:
    with pytest.raises(AnswerInvalid):
        verdict_on("molecule_llm_x", pb.SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED)


def test_what_only_the_server_reserves_is_refused_too() -> None:
    assert verdict_on("PLATFORM_X", pb.SECRET_VERDICT_BLOCKED_RESERVED) is SecretVerdict.BLOCKED_RESERVED


def test_an_invalid_answer_allows_no_key_that_it_does_not_plainly_allow() -> None:
    sent = ["SLACK_TOKEN", "NEW_VENDOR_KEY", "HF_TOKEN"]
    said = [pb.SECRET_VERDICT_ALLOWED, pb.SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED, pb.SECRET_VERDICT_ALLOWED]
    verdicts = [pb.SecretKeyVerdict(secret_key=key, verdict=each) for key, each in zip(sent, said, strict=True)]
    answer = service_pb.ValidateSecretWriteResponse(allowed=True, verdicts=verdicts)

    decision = fallback.secret_write(WORKSPACE, sent, ERROR, KEYS, doubted=verified_keys.doubted(answer, sent))

    assert [each.verdict for each in decision.verdicts] == [
        SecretVerdict.ALLOWED,
        SecretVerdict.BLOCKED_PLATFORM_MANAGED,
        SecretVerdict.BLOCKED_PLATFORM_MANAGED,
    ]


@pytest.mark.parametrize("about", [[], ["SLACK_TOKEN"], ["OTHER", "SLACK_TOKEN"]], ids=["none", "fewer", "others"])
def test_an_answer_about_other_keys_allows_none(about: list[str]) -> None:
    verdicts = [pb.SecretKeyVerdict(secret_key=key, verdict=pb.SECRET_VERDICT_ALLOWED) for key in about]
    answer = service_pb.ValidateSecretWriteResponse(allowed=True, verdicts=verdicts)
    sent = ["SLACK_TOKEN", "OTHER"]

    with pytest.raises(AnswerInvalid):
        verified_keys.secret_write(answer, sent, WORKSPACE, KEYS)
    decision = fallback.secret_write(WORKSPACE, sent, ERROR, KEYS, doubted=verified_keys.doubted(answer, sent))
    assert not any(each.verdict is SecretVerdict.ALLOWED for each in decision.verdicts)


def test_without_an_answer_unlisted_keys_are_allowed_and_all_others_refused() -> None:
    sent = ["SLACK_TOKEN", " openai_api_key", "NEW_VENDOR_KEY", "MOLECULE_LLM_X", "no name"]

    decision = fallback.secret_write("", sent, ERROR, KeyList(["NEW_VENDOR_KEY"]))

    blocked = SecretVerdict.BLOCKED_PLATFORM_MANAGED
    expected = [SecretVerdict.ALLOWED, blocked, blocked, SecretVerdict.BLOCKED_RESERVED, blocked]
    assert [each.verdict for each in decision.verdicts] == expected
    assert not decision.allowed
    assert decision.resolution is not None
    assert decision.resolution.error == ERROR


def test_a_closed_plan_strips_listed_keys_in_every_spelling_and_those_of_the_answer() -> None:
    wanted = ["New_Vendor_Key", "MOLECULE_LLM_X", "no name"]

    env = ["hf_token", "PATH", "new_vendor_key", "no name"]

    plan = fallback.provision_plan(WORKSPACE, env, ERROR, KEYS, also_strip=wanted)
    unknown = fallback.provision_plan(WORKSPACE, None, ERROR, KEYS, also_strip=wanted)

    assert plan.strip_keys == ("hf_token", "new_vendor_key")
    assert set(unknown.strip_keys) == {*KEYS.names, "New_Vendor_Key"}
    assert plan.catalogue == KEYS.catalogue
    assert set(plan.set_env.values()) == {"platform_managed"}
    assert plan.route_via_platform_proxy


@pytest.mark.parametrize(("asked", "named"), [(WORKSPACE.upper(), WORKSPACE), ("", ""), ("{x}", "")])
def test_a_closed_resolution_names_the_workspace_where_its_id_is_one(asked: str, named: str) -> None:
    resolution = fallback.resolution(asked, ERROR)

    assert resolution.workspace_id == named
    assert (resolution.mode, resolution.source) == (
        BillingMode.PLATFORM_MANAGED,
        BillingModeSource.CONSTANT_FALLBACK,
    )
    assert resolution.error == ERROR
