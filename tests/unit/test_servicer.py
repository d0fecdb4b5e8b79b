"""The servicer without a socket: what it answers, and when it leaves storage alone."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_type_hints

import grpc
import grpc_testing
import pytest
from structlog.testing import capture_logs

from billing_grpc import page_token
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.errors import DatabaseTimeout, RequestError
from billing_grpc.secret_keys import KeyList
from billing_grpc.server.auth.principals import LOCAL
from billing_grpc.server.budget import StorageBudget
from billing_grpc.server.call import RequestContext
from billing_grpc.server.servicer import BillingModeService
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.testing import InMemoryRepository
from billing_grpc.wire import messages

BLOCKED_KEYS = tuple(sorted(KeyList().names))

SERVICE = service_pb.DESCRIPTOR.services_by_name["BillingModeService"]
CHANGED = False
BYOK = "7f1fc6a0-0000-4000-8000-000000000001"
INHERITS = "7f1fc6a0-0000-4000-8000-000000000002"


class Synchronous:
    """grpcio-testing calls handlers synchronously; this runs the coroutine they return, and keeps what it raised.

    Nothing of `server.calls` runs there: how an error becomes a status is tested over a real server.
    """

    def __init__(self, servicer: BillingModeService) -> None:
        self._servicer = servicer
        self.raised: RequestError | None = None

    def __getattr__(self, name: str) -> Callable[[Any, Any], Any]:
        handler = getattr(self._servicer, name)

        async def as_local(request: Any, context: Any) -> Any:
            call = RequestContext(context, f"/{SERVICE.full_name}/{name}", request_id="request-1", principal=LOCAL)
            try:
                return await handler(request, call)
            except RequestError as error:
                self.raised = error
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.message)

        return lambda request, context: asyncio.run(as_local(request, context))


class Harness:
    """A servicer over a counting repository in memory, driven through grpcio-testing."""

    def __init__(self, org_default: str | None = None, storage_timeout: float = 1.0) -> None:
        self.repository = InMemoryRepository({BYOK: "byok", INHERITS: None})
        self.metrics = Metrics()
        servicer = BillingModeService(self.repository, lambda: org_default, KeyList(), storage_timeout, self.metrics)
        self._handlers = Synchronous(servicer)
        self._server = grpc_testing.server_from_dictionary({SERVICE: self._handlers}, grpc_testing.strict_real_time())

    def call(self, method: str, request: Any, timeout: float | None = None) -> Any:
        call = self._server.invoke_unary_unary(SERVICE.methods_by_name[method], (), request, timeout)
        response, _, code, details = call.termination()
        if self._handlers.raised is not None:
            raise self._handlers.raised
        assert code is grpc.StatusCode.OK, details
        return response


@pytest.mark.parametrize("method", list(SERVICE.methods), ids=lambda method: method.name)
def test_every_method_of_the_contract_takes_and_returns_its_own_messages(method: Any) -> None:
    types = get_type_hints(getattr(BillingModeService, method.name))

    assert types["request"] is getattr(service_pb, method.input_type.name)
    assert types["return"] is getattr(service_pb, method.output_type.name)
    assert types["call"] is RequestContext


def test_a_decision_is_answered_without_a_socket() -> None:
    answer = Harness().call("ResolveBillingMode", service_pb.ResolveBillingModeRequest(workspace_id=BYOK.upper()))

    assert answer.resolution.workspace_id == BYOK
    assert answer.resolution.resolved_mode == pb.BILLING_MODE_BYOK
    assert answer.resolution.source == pb.BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE


def test_a_batch_answers_duplicates_in_order_with_one_read() -> None:
    harness = Harness(org_default="disabled")
    unknown = "7f1fc6a0-0000-4000-8000-00000000ffff"

    answer = harness.call(
        "BatchResolveBillingModes",
        service_pb.BatchResolveBillingModesRequest(workspace_ids=[INHERITS, BYOK.upper(), INHERITS, unknown]),
    )

    assert [each.workspace_id for each in answer.resolutions] == [INHERITS, BYOK, INHERITS, unknown]
    assert [each.resolved_mode for each in answer.resolutions] == [
        pb.BILLING_MODE_DISABLED,
        pb.BILLING_MODE_BYOK,
        pb.BILLING_MODE_DISABLED,
        pb.BILLING_MODE_DISABLED,
    ]
    assert harness.repository.calls == 1


def test_a_batch_says_of_each_workspace_what_a_resolve_says_of_it() -> None:
    ids = [f"7f1fc6a0-0000-4000-8000-0000000000{number:02}" for number in range(40)]
    texts = ("byok", "disabled", "platform_managed", None, "BYOK", " byok", "", "x" * 256)
    for org_default in (None, "byok", "platform_managed", "garbage"):
        harness = Harness(org_default)
        # The last eight are missing.
        harness.repository.overrides = {each: texts[n % len(texts)] for n, each in enumerate(ids[:32])}

        batch = harness.call("BatchResolveBillingModes", service_pb.BatchResolveBillingModesRequest(workspace_ids=ids))

        assert list(batch.resolutions) == [
            harness.call("ResolveBillingMode", service_pb.ResolveBillingModeRequest(workspace_id=each)).resolution
            for each in ids
        ]


NO_DATABASE_CALL: dict[str, tuple[str, Any]] = {
    "resolve before the workspace exists": ("ResolveBillingMode", service_pb.ResolveBillingModeRequest()),
    "plan before the workspace exists": (
        "PlanProvisionEnv",
        service_pb.PlanProvisionEnvRequest(env_keys=["openai_api_key"]),
    ),
    "secrets before the workspace exists": (
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(workspace_id="", secret_keys=["OPENAI_API_KEY"]),
    ),
    "a key that is not on the list": (
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(workspace_id=BYOK, secret_keys=["SLACK_TOKEN"]),
    ),
    "a reserved key": (
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(workspace_id=BYOK, secret_keys=["MOLECULE_LLM_X", "A"]),
    ),
    "org-wide secrets": (
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(org_wide=pb.OrgWide(), secret_keys=["OPENAI_API_KEY"]),
    ),
}


@pytest.mark.parametrize(("method", "request_"), NO_DATABASE_CALL.values(), ids=NO_DATABASE_CALL)
def test_what_needs_no_stored_mode_makes_no_database_call(method: str, request_: Any) -> None:
    harness = Harness(org_default="byok")

    harness.call(method, request_)

    assert harness.repository.calls == 0


REFUSED: dict[str, tuple[str, Any, str]] = {
    "resolve a malformed id": ("ResolveBillingMode", {"workspace_id": "x"}, "WORKSPACE_ID_INVALID"),
    "batch without ids": ("BatchResolveBillingModes", {}, "COUNT_OUT_OF_RANGE"),
    "batch with an empty id": ("BatchResolveBillingModes", {"workspace_ids": [BYOK, ""]}, "WORKSPACE_ID_INVALID"),
    "batch of 1001": ("BatchResolveBillingModes", {"workspace_ids": [BYOK] * 1001}, "COUNT_OUT_OF_RANGE"),
    "get an empty id": ("GetWorkspaceBillingMode", {}, "WORKSPACE_ID_INVALID"),
    "set an empty id": ("SetWorkspaceBillingMode", {"mode": "BILLING_MODE_BYOK"}, "WORKSPACE_ID_INVALID"),
    "set without a change": ("SetWorkspaceBillingMode", {"workspace_id": BYOK}, "CHANGE_REQUIRED"),
    "set the unspecified mode": ("SetWorkspaceBillingMode", {"workspace_id": BYOK, "mode": 0}, "MODE_INVALID"),
    "set an unknown mode": ("SetWorkspaceBillingMode", {"workspace_id": BYOK, "mode": 7}, "MODE_INVALID"),
    "set with a control character": (
        "SetWorkspaceBillingMode",
        {"workspace_id": BYOK, "mode": 2, "reason": "a\nb"},
        "TEXT_INVALID",
    ),
    "secrets without a scope": ("ValidateSecretWrite", {"secret_keys": ["A"]}, "SCOPE_REQUIRED"),
    "secrets without keys": ("ValidateSecretWrite", {"workspace_id": BYOK}, "COUNT_OUT_OF_RANGE"),
    "secrets of a malformed id": (
        "ValidateSecretWrite",
        {"workspace_id": "x", "secret_keys": ["A"]},
        "WORKSPACE_ID_INVALID",
    ),
    "a secret key that is none": (
        "ValidateSecretWrite",
        {"workspace_id": BYOK, "secret_keys": ["OPENAI_API_KEY", "a b"]},
        "SECRET_KEY_INVALID",
    ),
    "plan with 4097 keys": (
        "PlanProvisionEnv",
        {"workspace_id": BYOK, "env_keys": ["A"] * 4097},
        "COUNT_OUT_OF_RANGE",
    ),
    "changes of a malformed id": ("ListBillingModeChanges", {"workspace_id": "x"}, "WORKSPACE_ID_INVALID"),
    "a negative page": ("ListBillingModeChanges", {"page_size": -1}, "COUNT_OUT_OF_RANGE"),
    "a page token that is none": ("ListBillingModeChanges", {"page_token": "x"}, "PAGE_TOKEN_INVALID"),
    "a page token of another list": (
        "ListBillingModeChanges",
        {
            "workspace_id": BYOK,
            "page_token": page_token.encode(page_token.list_name("changes", INHERITS), page_token.LogPosition(7)),
        },
        "PAGE_TOKEN_INVALID",
    ),
    "a negative page of workspaces": ("ListWorkspaceBillingModes", {"page_size": -1}, "COUNT_OUT_OF_RANGE"),
    "a mode that does not exist": ("ListWorkspaceBillingModes", {"resolved_mode": 9}, "FILTER_INVALID"),
    "a source that does not exist": ("ListWorkspaceBillingModes", {"source": -1}, "FILTER_INVALID"),
    "a filter that does not exist": ("ListWorkspaceBillingModes", {"override": 3}, "FILTER_INVALID"),
    "a change under no default": ("ListWorkspaceBillingModes", {"would_change": True}, "FILTER_INVALID"),
    "a token of the change log": (
        "ListWorkspaceBillingModes",
        {"page_token": page_token.encode(page_token.list_name("changes", None), page_token.LogPosition(7))},
        "PAGE_TOKEN_INVALID",
    ),
    "a token of another filter": (
        "ListWorkspaceBillingModes",
        {
            "resolved_mode": 2,
            "page_token": page_token.encode(page_token.list_name("workspaces", None, 1, 0, 0, CHANGED), BYOK),
        },
        "PAGE_TOKEN_INVALID",
    ),
}


@pytest.mark.parametrize(("method", "fields", "reason"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_before_any_database_call(method: str, fields: dict[str, Any], reason: str) -> None:
    harness = Harness()
    request = getattr(service_pb, f"{method}Request")(**fields)

    with pytest.raises(RequestError) as refused:
        harness.call(method, request)

    assert refused.value.reason == reason
    assert harness.repository.calls == 0


def test_one_key_on_the_list_is_enough_to_need_the_mode_and_one_call_answers_all() -> None:
    harness = Harness()

    answer = harness.call(
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(workspace_id=INHERITS, secret_keys=["A", "OPENAI_API_KEY", " hf_token"]),
    )

    assert harness.repository.calls == 1
    assert not answer.allowed
    assert answer.HasField("resolution")
    assert [(each.secret_key, each.verdict) for each in answer.verdicts] == [
        ("A", pb.SECRET_VERDICT_ALLOWED),
        ("OPENAI_API_KEY", pb.SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED),
        (" hf_token", pb.SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED),
    ]


def test_no_resolution_is_answered_when_no_key_needed_one() -> None:
    answer = Harness().call(
        "ValidateSecretWrite", service_pb.ValidateSecretWriteRequest(workspace_id=BYOK, secret_keys=["A"])
    )

    assert answer.allowed
    assert not answer.HasField("resolution")


@pytest.mark.parametrize(("org_default", "allowed"), [(None, False), ("garbage", False), ("byok", True)])
def test_org_wide_secrets_are_judged_by_the_org_default_alone(org_default: str | None, allowed: bool) -> None:
    answer = Harness(org_default).call(
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(org_wide=pb.OrgWide(), secret_keys=["OPENAI_API_KEY"]),
    )

    assert answer.allowed is allowed
    assert answer.resolution.workspace_id == ""


WHAT_IF = {"byok": pb.BILLING_MODE_BYOK, " Disabled ": pb.BILLING_MODE_DISABLED, "": None, "garbage": None}


@pytest.mark.parametrize(("org_default", "mode"), WHAT_IF.items(), ids=repr)
@pytest.mark.parametrize("workspace_id", ["", INHERITS])
def test_a_supposed_org_default_is_used_in_place_of_the_servers(
    workspace_id: str, org_default: str, mode: int | None
) -> None:
    request = service_pb.ResolveBillingModeRequest(workspace_id=workspace_id, org_default=org_default)
    resolution = Harness("platform_managed").call("ResolveBillingMode", request).resolution

    assert resolution.reason.startswith("what if: ")
    assert resolution.resolved_mode == (mode or pb.BILLING_MODE_PLATFORM_MANAGED)
    assert resolution.source == (
        pb.BILLING_MODE_SOURCE_CONSTANT_FALLBACK if mode is None else pb.BILLING_MODE_SOURCE_ORG_DEFAULT
    )


def test_a_plan_strips_every_spelling_and_sets_both_variables() -> None:
    answer = Harness().call(
        "PlanProvisionEnv",
        service_pb.PlanProvisionEnvRequest(workspace_id=INHERITS, env_keys=["openai_api_key", "PATH"]),
    )

    assert list(answer.strip_keys) == ["openai_api_key"]
    assert answer.catalogue == messages.catalogue_to_proto(KeyList().catalogue)
    assert dict(answer.set_env) == {
        "MOLECULE_LLM_BILLING_MODE": "platform_managed",
        "MOLECULE_LLM_BILLING_MODE_RESOLVED": "platform_managed",
    }
    assert answer.route_via_platform_proxy


def test_without_names_a_plan_strips_the_whole_set_and_with_what_is_left_nothing() -> None:
    harness = Harness()

    whole = harness.call("PlanProvisionEnv", service_pb.PlanProvisionEnvRequest(workspace_id=INHERITS))
    left = service_pb.PlanProvisionEnvRequest(workspace_id=INHERITS, env_keys=["PATH", "MOLECULE_LLM_BILLING_MODE"])

    assert list(whole.strip_keys) == sorted(KeyList().names)
    assert not harness.call("PlanProvisionEnv", left).strip_keys


def test_a_suspect_is_named_and_neither_stripped_nor_refused() -> None:
    names = ["NEWVENDORAI_API_KEY", "openai_api_key", "PATH"]
    harness = Harness()

    answer = harness.call("PlanProvisionEnv", service_pb.PlanProvisionEnvRequest(workspace_id=INHERITS, env_keys=names))
    asked = service_pb.ValidateSecretWriteRequest(workspace_id=INHERITS, secret_keys=names[:1])

    assert (list(answer.suspect_keys), list(answer.strip_keys)) == (names[:1], names[1:2])
    assert harness.call("ValidateSecretWrite", asked).allowed
    assert harness.metrics.registry.get_sample_value("billing_grpc_suspect_keys_total") == 1


def test_with_hardly_any_time_left_no_database_is_asked_and_the_answer_is_closed() -> None:
    harness = Harness(org_default="byok")

    answer = harness.call("ResolveBillingMode", service_pb.ResolveBillingModeRequest(workspace_id=BYOK), timeout=0.04)

    assert harness.repository.calls == 0
    assert answer.resolution.resolved_mode == pb.BILLING_MODE_PLATFORM_MANAGED
    assert answer.resolution.error.reason == "DATABASE_TIMEOUT"


@pytest.mark.parametrize(("left", "budget"), [(None, 0.25), (10.0, 0.25), (0.3, 0.25), (0.2, 0.15)])
def test_storage_gets_the_lesser_of_its_own_limit_and_the_time_left_but_50_ms(
    left: float | None, budget: float
) -> None:
    rpc: Any = SimpleNamespace(time_remaining=lambda: left)

    assert StorageBudget(0.25).of(RequestContext(rpc, "/package.Service/Method")) == pytest.approx(budget)


@pytest.mark.parametrize("timeout", [None, 0.2])
def test_a_read_gets_the_budget_of_its_call(timeout: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(storage_timeout=0.25)
    budgets: list[float] = []
    load = harness.repository.load_override

    async def observed(workspace_id: str, *, budget: float) -> Any:
        budgets.append(budget)
        return await load(workspace_id, budget=budget)

    monkeypatch.setattr(harness.repository, "load_override", observed)
    harness.call("ResolveBillingMode", service_pb.ResolveBillingModeRequest(workspace_id=BYOK), timeout=timeout)

    assert 0 < budgets[0] <= (0.25 if timeout is None else 0.15)


def test_a_write_answers_what_was_and_what_is() -> None:
    harness = Harness(org_default="disabled")

    answer = harness.call(
        "SetWorkspaceBillingMode",
        service_pb.SetWorkspaceBillingModeRequest(workspace_id=INHERITS, mode=pb.BILLING_MODE_BYOK),
    )

    assert answer.previous.resolved_mode == pb.BILLING_MODE_DISABLED
    assert answer.billing_mode.resolution.resolved_mode == pb.BILLING_MODE_BYOK
    assert harness.repository.overrides[INHERITS] == "byok"


def test_only_a_write_that_changed_something_is_logged() -> None:
    harness = Harness()
    request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=BYOK, mode=pb.BILLING_MODE_BYOK)
    with capture_logs() as lines:
        harness.call("SetWorkspaceBillingMode", request)
        assert lines == []
        harness.call(
            "SetWorkspaceBillingMode",
            service_pb.SetWorkspaceBillingModeRequest(workspace_id=BYOK, mode="BILLING_MODE_DISABLED"),
        )
        assert [line["event"] for line in lines] == ["workspace billing mode changed"]


def test_an_org_wide_decision_is_counted() -> None:
    harness = Harness()
    request = service_pb.ValidateSecretWriteRequest(org_wide=pb.OrgWide(), secret_keys=["OPENAI_API_KEY"])
    harness.call("ValidateSecretWrite", request)
    labels = {"mode": "platform_managed", "source": "constant_fallback"}

    assert harness.metrics.registry.get_sample_value("billing_grpc_resolutions_total", labels) == 1


def test_a_failed_get_carries_the_closed_resolution() -> None:
    harness = Harness(org_default="byok")
    harness.repository.failure = DatabaseTimeout()

    with pytest.raises(DatabaseTimeout) as failed:
        harness.call("GetWorkspaceBillingMode", service_pb.GetWorkspaceBillingModeRequest(workspace_id=BYOK))

    (closed,) = failed.value.attachments
    assert getattr(closed, "mode", None) == "platform_managed"


@pytest.mark.parametrize("workspace_id", ["", BYOK, INHERITS])
def test_a_what_if_call_is_no_resolution_in_the_metrics(workspace_id: str) -> None:
    harness = Harness()
    request = service_pb.ResolveBillingModeRequest(workspace_id=workspace_id, org_default="disabled")
    harness.call("ResolveBillingMode", request)
    family = next(each for each in harness.metrics.registry.collect() if each.name == "billing_grpc_resolutions")

    assert sum(sample.value for sample in family.samples if sample.name.endswith("_total")) == 0
