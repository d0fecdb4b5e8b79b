"""The vectors are well-formed, none that is needed is missing, and none expects what the rule forbids."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf import json_format

from billing_grpc import catalogue, provision, resolver
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.catalogue import RESERVED_PREFIX, NameSet, digest
from billing_grpc.conformance.cases import (
    BEHAVIOURS,
    DECISIONS,
    ApplyCase,
    Case,
    load,
    load_apply,
    load_key_names,
    matches,
)
from billing_grpc.errors import STORAGE_ERRORS
from billing_grpc.model import Resolution, ResolutionError
from billing_grpc.secret_keys import LOOK_ALIKES, KeyList, is_reserved, normalise
from billing_grpc.validation import MAX_ENV_KEYS, MAX_SECRET_KEYS

FOLDER: Final = Path(__file__).parents[2] / "conformance"
CASES: Final = {case.id: case for case in load()}
MODES: Final = ("platform_managed", "byok", "disabled")
CLIENTS_REASONS: Final = {"SERVER_UNREACHABLE", "SERVER_REFUSED", "ANSWER_INVALID"}
PREFIXES: Final = dict(zip(("resolve", "batch", "secrets", "plan"), DECISIONS, strict=True))

# The rows of the rule: what the column holds, by what the organisation's default says.
NO_ROW: Final = "no such row"
ORG_DEFAULTS: Final = (None, "", "prepaid", *MODES)
OVERRIDES: Final = (*MODES, None, "BYOK", " byok", "", NO_ROW)

# What can go wrong with a call, by the reason that the closed answer then has; in closed.json for each of the four methods.
FAILURES: Final = {
    "unreachable": "SERVER_UNREACHABLE",
    "deadline": "SERVER_UNREACHABLE",
    "reset": "SERVER_UNREACHABLE",
    "status-unavailable": "SERVER_UNREACHABLE",
    "status-deadline-exceeded": "SERVER_UNREACHABLE",
    "status-cancelled": "SERVER_UNREACHABLE",
    "status-unauthenticated": "SERVER_REFUSED",
    "status-permission-denied": "SERVER_REFUSED",
    "status-resource-exhausted": "SERVER_REFUSED",
    "status-invalid-argument": "SERVER_REFUSED",
    "status-unimplemented": "SERVER_REFUSED",
    "status-internal": "SERVER_REFUSED",
    "status-unknown": "SERVER_REFUSED",
    "status-not-found": "SERVER_REFUSED",
    "garbled": ["ANSWER_INVALID", "SERVER_REFUSED", "SERVER_UNREACHABLE"],
    "cut-short": ["ANSWER_INVALID", "SERVER_REFUSED", "SERVER_UNREACHABLE"],
}

# What can be wrong with a resolution, in closed.json for each of the four methods; of a batch it closes one element.
CONTRADICTIONS: Final = (
    *("mode-unspecified", "mode-4", "mode-99", "mode-negative", "source-unspecified", "source-99"),
    *("org-default-unspecified", "org-default-99", "an-error-beside-an-open-mode"),
    *("constant-fallback-with-an-open-mode", "constant-fallback-with-an-open-override"),
    *("override-text-of-another-mode", "override-text-platform-managed", "override-text-in-another-spelling"),
    *("override-text-absent", "org-default-of-another-mode", "org-default-open-in-another-way"),
    *("org-default-opens-a-corrupt-override", "org-default-overrules-an-override"),
)
# Of a batch these close all elements.
WRONG_WORKSPACE: Final = ("another-workspace", "no-workspace")

OTHERS: Final = {
    "resolve": (
        *("missing-resolution", "empty-resolution", "an-override-before-it-exists", "before-it-exists-unreachable"),
        "an-error-without-a-reason",
        *("what-if-platform-managed-answered-as-byok", "what-if-unset-answered-as-byok"),
        *("what-if-unrecognised-answered-as-byok", "what-if-kelvin-sign-answered-as-byok"),
        *("what-if-no-break-space-answered-as-byok", "what-if-ignored-beside-an-override"),
    ),
    "batch": (
        *("too-few-closes-all", "too-many-closes-all", "none-closes-all", "swapped-closes-all"),
        *("another-workspace-closes-all", "no-workspace-closes-all", "empty-element-closes-all"),
        *("one-for-two-of-the-same", "several-closed-each-by-itself"),
    ),
    "secrets": (
        *("missing-resolution", "too-few-verdicts", "too-many-verdicts", "no-verdicts", "names-swapped"),
        *("a-name-in-another-spelling", "one-name-differs", "allowed-with-a-blocked-verdict"),
        *("allowed-with-a-reserved-verdict", "refused-with-every-verdict-allowed", "verdict-unspecified", "verdict-99"),
        *("refused-with-every-unlisted-key-allowed", "verdict-unspecified-of-an-unlisted-key"),
        "blocked-under-an-open-mode",
        *("listed-allowed-in-another-spelling-without-a-resolution", "a-callers-key-allowed-without-a-resolution"),
        *("reserved-allowed", "reserved-allowed-in-another-spelling", "no-keys-name-allowed", "a-workspace-org-wide"),
        *("an-override-org-wide", "an-override-before-it-exists", "unlisted-keys-survive-an-outage"),
        "org-wide-unreachable",
    ),
    "plan": (
        *("missing-resolution", "empty", "an-override-before-it-exists", "before-it-exists-unreachable"),
        *("stripped-under-an-open-mode", "nothing-set", "nothing-set-under-an-open-mode", "mode-variable-missing"),
        *("resolved-variable-missing", "mode-variable-of-another-mode", "resolved-variable-of-another-mode"),
        *(
            "sets-a-listed-key",
            "sets-a-callers-key",
            "sets-a-name-with-an-equals-sign",
            "sets-a-variable-without-a-name",
            "sets-a-name-with-a-nul",
            "sets-a-value-with-a-nul",
            "strips-a-reserved-name",
            "strips-a-variable-that-it-sets",
        ),
        *("not-routed-under-platform-managed", "routed-under-an-open-mode", "open-plan-under-platform-managed"),
        "what-an-invalid-answer-strips-is-stripped-too",
    ),
}

# Where the lists of server and client differ, what either holds is refused or stripped, and nothing is ANSWER_INVALID.
DIFFERENT_LISTS: Final = (
    *("secrets/a-key-that-only-the-server-lists-is-blocked", "secrets/a-key-that-only-the-client-lists-is-blocked"),
    *("secrets/a-key-that-only-the-client-lists-is-allowed-under-byok", "secrets/both-lists-are-longer-than-the-other"),
    *("secrets/the-server-allows-listed-under-platform-managed", "secrets/the-server-allows-listed-with-an-error"),
    *(
        "secrets/a-key-that-only-the-client-lists-is-blocked-during-an-outage",
        "plan/both-lists-are-longer-than-the-other",
    ),
    *("plan/a-key-that-only-the-server-lists-is-stripped", "plan/a-key-that-only-the-client-lists-is-stripped"),
    *("plan/the-server-strips-nothing-stripped", "plan/the-server-strips-without-a-callers-key"),
)


def raw_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in FOLDER.glob("*.json"):
        yield from ((f"{path.stem}/{each['name']}", each) for each in json.loads(path.read_text()).get("cases", ()))


def resolutions(case: Case) -> list[dict[str, Any]]:
    """Every resolution that a client must answer in this case."""
    answers = case.expect if isinstance(case.expect, list) else [case.expect]
    found = [each.get("resolution", each) for each in answers]
    return [each for each in found if each is not None]


def reasons(resolution: dict[str, Any]) -> set[str]:
    error = resolution["error"]
    return set(error if isinstance(error, list) else [error])


CLOSED_BY_CLIENT: Final = [
    name for name, case in CASES.items() if any(reasons(each) & CLIENTS_REASONS for each in resolutions(case))
]


def test_every_name_is_unique_and_fits_into_metadata() -> None:
    names = [name for name, _ in raw_cases()]

    assert len(names) == len(set(names))
    assert len(names) == len(CASES) + len(load_apply())
    assert not [name for name in names if not re.fullmatch(r"[a-z]+/[a-z0-9-]+", name)]


def test_a_case_says_what_a_runner_needs(subtests: pytest.Subtests) -> None:
    raw_by_name = dict(raw_cases())
    for name, case in CASES.items():
        with subtests.test(name):
            check_complete(name, case, raw_by_name[name])


def check_complete(name: str, case: Case, raw: dict[str, Any]) -> None:
    assert raw.keys() <= {"name", "method", "client", "request", "server", "expect", "expect_server"}
    assert raw.get("client", {}).keys() <= {"blocked_keys", "extra_blocked_keys", "timeout_ms"}
    assert case.method in DECISIONS
    assert case.behaviour in BEHAVIOURS
    request = getattr(service_pb, f"{case.method}Request")()
    assert json_format.ParseDict(dict(case.request), request).ByteSize() >= 0
    assert (case.behaviour == "hang") == (case.timeout is not None)
    assert case.expect_server is None or case.behaviour == "state"
    assert matches(case.expect, case.expect) or "garbled" in name or "cut-short" in name


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        (True, True, True),
        (True, 1, False),
        (None, False, False),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1], [1, 2], False),
        ([], {}, False),
        ({"error": ["A", "B"]}, {"error": "B"}, True),
        ({"error": ["A", "B"]}, {"error": "C"}, False),
        ({"a": ["A", "B"]}, {"a": "B"}, False),
    ],
    ids=str,
)
def test_an_answer_matches_when_it_is_the_same_in_kind_and_value(expected: Any, actual: Any, same: bool) -> None:
    assert matches(expected, actual) is same


def test_every_row_of_the_rule_has_its_vector() -> None:
    asked = set()
    for case in CASES.values():
        if case.method == "ResolveBillingMode" and case.behaviour == "state" and "org_default" not in case.request:
            overrides, workspace = case.detail.get("overrides", {}), case.request["workspace_id"]
            override = overrides.get(workspace, NO_ROW)
            asked.add((workspace == "", override, case.detail.get("org_default"), case.detail.get("storage_error")))

    assert asked >= {(False, override, default, None) for override in OVERRIDES for default in ORG_DEFAULTS}
    assert asked >= {(True, NO_ROW, default, "DATABASE_UNREACHABLE") for default in ORG_DEFAULTS}
    assert asked >= {(False, "byok", "byok", reason) for reason in STORAGE_ERRORS}


def test_every_way_in_which_a_call_fails_has_its_vector(subtests: pytest.Subtests) -> None:
    for kind, prefix in itertools.product(FAILURES, PREFIXES):
        with subtests.test(f"{prefix}-{kind}"):
            check_failure(kind, prefix)


def check_failure(kind: str, prefix: str) -> None:
    case = CASES[f"closed/{prefix}-{kind}"]

    assert case.method == PREFIXES[prefix]
    assert {str(each["error"]) for each in resolutions(case)} == {str(FAILURES[kind])}
    if kind.startswith("status-"):
        assert case.detail["code"] == kind.removeprefix("status-").replace("-", "_").upper()
    else:
        wanted = {"deadline": "hang", "garbled": "bytes", "cut-short": "bytes"}.get(kind, kind)
        assert case.behaviour == wanted


def test_every_contradiction_of_a_resolution_has_its_vector(subtests: pytest.Subtests) -> None:
    for kind, prefix in itertools.product([*CONTRADICTIONS, *WRONG_WORKSPACE], PREFIXES):
        with subtests.test(f"{prefix}-{kind}"):
            check_contradiction(kind, prefix)


def check_contradiction(kind: str, prefix: str) -> None:
    ending = "" if prefix != "batch" else "-closes-all" if kind in WRONG_WORKSPACE else "-closes-that-one"
    case = CASES[f"closed/{prefix}-{kind}{ending}"]

    assert case.method == PREFIXES[prefix]
    assert case.behaviour == "answer"
    assert {"ANSWER_INVALID"} in [reasons(each) for each in resolutions(case)]


def test_every_other_contradiction_has_its_vector(subtests: pytest.Subtests) -> None:
    for prefix, kinds in OTHERS.items():
        for kind in kinds:
            with subtests.test(f"{prefix}-{kind}"):
                assert CASES[f"closed/{prefix}-{kind}"].method == PREFIXES[prefix]
                assert f"closed/{prefix}-{kind}" in CLOSED_BY_CLIENT


def test_lists_that_differ_make_no_answer_invalid(subtests: pytest.Subtests) -> None:
    for name in DIFFERENT_LISTS:
        with subtests.test(name):
            case = CASES[name]
            assert name not in CLOSED_BY_CLIENT
            assert case.extra_blocked_keys or case.behaviour == "answer" or case.detail["extra_blocked_keys"]


def test_more_than_a_call_may_ask_about_and_what_can_be_no_element_have_vectors() -> None:
    asked = [
        (case.method, len(case.request.get("secret_keys", case.request.get("env_keys", ())))) for case in CASES.values()
    ]

    assert any(method == "ValidateSecretWrite" and count > MAX_SECRET_KEYS for method, count in asked)
    assert any(method == "PlanProvisionEnv" and count > MAX_ENV_KEYS for method, count in asked)
    assert {each["error"] for each in CASES["resolution/batch-with-ids-that-are-none-closes-those-alone"].expect} == {
        None,
        "SERVER_REFUSED",
    }


def test_the_names_that_clients_must_know_are_those_of_the_code() -> None:
    names = load_key_names()

    assert names.version == catalogue.load().version
    assert names.sets == {each.value: tuple(sorted(KeyList(name_set=each).names)) for each in NameSet}
    assert names.digests == {each: digest(held) for each, held in names.sets.items()}
    assert names.reserved_prefix == RESERVED_PREFIX
    assert names.look_alikes == LOOK_ALIKES


def test_no_vector_expects_an_open_mode_that_nothing_says(subtests: pytest.Subtests) -> None:
    for name, case in CASES.items():
        with subtests.test(name):
            check_open_modes(case)


def check_open_modes(case: Case) -> None:
    for each in resolutions(case):
        if each["mode"] != "platform_managed":
            assert each["error"] is None
            assert each["mode"] == {
                "workspace_override": each["workspace_override"],
                "org_default": each["org_default"] if each["workspace_override"] is None else None,
            }.get(each["source"])


def test_what_a_client_closes_is_what_the_pure_rule_closes(subtests: pytest.Subtests) -> None:
    for name in CLOSED_BY_CLIENT:
        with subtests.test(name):
            check_fallback(CASES[name])


def check_fallback(case: Case) -> None:
    for each in resolutions(case):
        if reasons(each) <= CLIENTS_REASONS:
            closed = resolver.resolve(each["workspace_id"], ResolutionError("", ""), None)
            assert each == {**in_words(closed), "error": each["error"]}
    if case.method == "ValidateSecretWrite":
        check_secrets(case)
    if case.method == "PlanProvisionEnv":
        check_plan(case)


def in_words(resolution: Resolution) -> dict[str, Any]:
    return {
        "workspace_id": resolution.workspace_id,
        "mode": resolution.mode.value,
        "source": resolution.source.value,
        "workspace_override": resolution.workspace_override,
        "org_default": resolution.org_default.value,
    }


def check_secrets(case: Case) -> None:
    """Listed keys and what is no name are blocked, reserved keys reserved; others allowed where nothing contradicts."""
    keys, verdicts = KeyList(case.extra_blocked_keys, name_set=NameSet(case.blocked_keys)), case.expect["verdicts"]
    assert [each["secret_key"] for each in verdicts] == case.request["secret_keys"]
    assert case.expect["allowed"] == (bool(verdicts) and all(each["verdict"] == "allowed" for each in verdicts))
    for each in verdicts:
        name = normalise(each["secret_key"])
        if name is None or keys.needs_mode(name):
            assert each["verdict"] == "blocked_platform_managed"
        elif is_reserved(name):
            assert each["verdict"] == "blocked_reserved"
        elif case.expect["resolution"]["error"] != "ANSWER_INVALID":
            assert each["verdict"] == "allowed"


def check_plan(case: Case) -> None:
    """The plan that the pure module makes of the closed resolution, and what an invalid answer would have stripped."""
    closed = replace(resolver.resolve("", ResolutionError("", ""), None), workspace_id="")
    said = case.detail.get("strip_keys", ()) if case.behaviour == "answer" else ()
    more = {key for key in said if (name := normalise(key)) is not None and not is_reserved(name)}
    keys = KeyList(case.extra_blocked_keys, name_set=NameSet(case.blocked_keys))
    plan = provision.plan(closed, keys, case.request.get("env_keys") or None, also_strip=more)
    assert case.expect["strip_keys"] == list(plan.strip_keys)
    assert case.expect["set_env"] == plan.set_env
    assert case.expect["route_via_platform_proxy"] is plan.route_via_platform_proxy


def test_an_applied_plan_removes_every_spelling_sets_what_it_says_and_keeps_the_rest(
    subtests: pytest.Subtests,
) -> None:
    for case in load_apply():
        with subtests.test(case.name):
            check_applied(case)


def check_applied(case: ApplyCase) -> None:
    gone = {normalise(key) for key in case.strip_keys} - {None}
    kept = case.expect.keys() - case.set_env.keys()

    assert case.expect.items() >= case.set_env.items()
    assert {key: case.expect[key] for key in kept}.items() <= case.env.items()
    assert not {normalise(key) for key in kept} & (gone | case.set_env.keys())
    if case.mode in MODES[1:] and not case.strip_keys:
        assert not [key for key in case.env.keys() - kept if "MOLECULE_LLM_BILLING_MODE" not in key.upper()]
