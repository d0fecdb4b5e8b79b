"""The contract over the wire: a real server, a real client, storage in memory that can be made to fail."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.errors import STORAGE_ERRORS, DatabaseTimeout, DatabaseUnreachable, StorageError
from billing_grpc.model import StoredOverride
from billing_grpc.secret_keys import KeyList
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.testing import InMemoryRepository, running_server

BLOCKED_KEYS = tuple(sorted(KeyList().names))

BYOK: Final = "7f1fc6a0-0000-4000-8000-000000000001"
INHERITS: Final = "7f1fc6a0-0000-4000-8000-000000000002"
UNKNOWN: Final = "7f1fc6a0-0000-4000-8000-00000000ffff"
SERVICE: Final = "molecule.billing.v1.BillingModeService"

DECISIONS: Final[dict[str, Any]] = {
    "ResolveBillingMode": service_pb.ResolveBillingModeRequest(workspace_id=BYOK),
    "BatchResolveBillingModes": service_pb.BatchResolveBillingModesRequest(workspace_ids=[BYOK, INHERITS, BYOK]),
    "ValidateSecretWrite": service_pb.ValidateSecretWriteRequest(
        workspace_id=BYOK, secret_keys=["OPENAI_API_KEY", "SLACK_TOKEN"]
    ),
    "PlanProvisionEnv": service_pb.PlanProvisionEnvRequest(workspace_id=BYOK, env_keys=["openai_api_key"]),
}
ADMINISTRATION: Final[dict[str, Any]] = {
    "GetWorkspaceBillingMode": service_pb.GetWorkspaceBillingModeRequest(workspace_id=BYOK),
    "SetWorkspaceBillingMode": service_pb.SetWorkspaceBillingModeRequest(workspace_id=BYOK, inherit=pb.Inherit()),
    "ListBillingModeChanges": service_pb.ListBillingModeChangesRequest(),
    "ListWorkspaceBillingModes": service_pb.ListWorkspaceBillingModesRequest(),
    "SummarizeBillingModes": service_pb.SummarizeBillingModesRequest(org_default="byok"),
}
RETRYABLE: Final = {"DATABASE_UNREACHABLE", "DATABASE_TIMEOUT"}


class Harness:
    """A repository in memory, the server over it, and a client's view of both."""

    def __init__(self, repository: InMemoryRepository, metrics: Metrics, channel: grpc.aio.Channel) -> None:
        self.repository = repository
        self.metrics = metrics
        self.channel = channel
        self._stub: Any = service_grpc.BillingModeServiceStub(channel)

    async def call(self, method: str, request: Message, deadline: float = 5.0) -> Any:
        return await getattr(self._stub, method)(request, timeout=deadline)

    async def failure(self, method: str, request: Message) -> tuple[grpc.StatusCode, str, list[Message]]:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self.call(method, request)
        status = rpc_status.from_call(failed.value)
        return failed.value.code(), failed.value.details() or "", [unpacked(each) for each in status.details if status]

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def unpacked(packed: Any) -> Message:
    kinds = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
        pb.BillingModeResolution,
        pb.WorkspaceBillingMode,
    )
    for kind in kinds:
        message = kind()
        if packed.Unpack(message):
            return message
    raise AssertionError(f"an unexpected detail: {packed.type_url}")


Kind = TypeVar("Kind", bound=Message)


def only(details: list[Message], kind: type[Kind]) -> Kind:
    (found,) = [detail for detail in details if isinstance(detail, kind)]
    return found


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    repository = InMemoryRepository({BYOK: "byok", INHERITS: None})
    metrics = Metrics()
    async with (
        running_server(repository, org_default="byok", metrics=metrics) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Harness(repository, metrics, channel)


def resolutions(answer: Any) -> list[pb.BillingModeResolution]:
    return list(answer.resolutions) if hasattr(answer, "resolutions") else [answer.resolution]


@pytest.mark.parametrize("kind", STORAGE_ERRORS.values(), ids=STORAGE_ERRORS)
@pytest.mark.parametrize("method", DECISIONS)
async def test_a_decision_is_total_whatever_storage_does(
    method: str, kind: type[StorageError], harness: Harness
) -> None:
    harness.repository.failure = kind()

    answer = await harness.call(method, DECISIONS[method])

    for resolution in resolutions(answer):
        assert resolution.resolved_mode == pb.BILLING_MODE_PLATFORM_MANAGED
        assert resolution.source == pb.BILLING_MODE_SOURCE_CONSTANT_FALLBACK
        assert resolution.org_default == pb.BILLING_MODE_BYOK
        assert resolution.error.reason == kind.reason
        assert not resolution.HasField("workspace_override")
    assert len(resolutions(answer)) == (3 if method == "BatchResolveBillingModes" else 1)


async def test_a_degraded_gate_refuses_vendor_keys_and_only_those(harness: Harness) -> None:
    harness.repository.failure = DatabaseUnreachable()

    answer = await harness.call("ValidateSecretWrite", DECISIONS["ValidateSecretWrite"])

    assert not answer.allowed
    assert [each.verdict for each in answer.verdicts] == [
        pb.SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED,
        pb.SECRET_VERDICT_ALLOWED,
    ]
    assert "retry" in answer.verdicts[0].message


async def test_a_degraded_plan_strips_everything(harness: Harness) -> None:
    harness.repository.failure = DatabaseUnreachable()

    answer = await harness.call("PlanProvisionEnv", DECISIONS["PlanProvisionEnv"])

    assert list(answer.strip_keys) == ["openai_api_key"]
    assert answer.route_via_platform_proxy
    assert set(answer.set_env.values()) == {"platform_managed"}


@pytest.mark.parametrize("kind", STORAGE_ERRORS.values(), ids=STORAGE_ERRORS)
@pytest.mark.parametrize("method", ADMINISTRATION)
async def test_administration_tells_the_truth_about_storage(
    method: str, kind: type[StorageError], harness: Harness
) -> None:
    harness.repository.failure = kind()

    code, message, details = await harness.failure(method, ADMINISTRATION[method])

    assert (code, message) == (grpc.StatusCode.UNAVAILABLE, kind.public_message)
    info = only(details, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("billing.molecule", kind.reason)
    assert any(isinstance(each, error_details_pb2.RetryInfo) for each in details) == (kind.reason in RETRYABLE)
    closed = [each for each in details if isinstance(each, pb.BillingModeResolution)]
    assert [each.resolved_mode for each in closed] == (
        [pb.BILLING_MODE_PLATFORM_MANAGED] if method == "GetWorkspaceBillingMode" else []
    )


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetWorkspaceBillingMode", service_pb.GetWorkspaceBillingModeRequest(workspace_id=UNKNOWN)),
        (
            "SetWorkspaceBillingMode",
            service_pb.SetWorkspaceBillingModeRequest(workspace_id=UNKNOWN, mode=pb.BILLING_MODE_BYOK),
        ),
    ],
)
async def test_administration_of_an_unknown_workspace_is_not_found(
    method: str, request_: Message, harness: Harness
) -> None:
    code, _, details = await harness.failure(method, request_)

    assert code is grpc.StatusCode.NOT_FOUND
    assert only(details, error_details_pb2.ErrorInfo).reason == "WORKSPACE_NOT_FOUND"
    assert UNKNOWN not in harness.repository.overrides


BAD: Final[dict[str, tuple[str, Message, str, list[str]]]] = {
    "a malformed id": (
        "ResolveBillingMode",
        service_pb.ResolveBillingModeRequest(workspace_id="{" + BYOK + "}"),
        "WORKSPACE_ID_INVALID",
        ["workspace_id"],
    ),
    "1001 ids": (
        "BatchResolveBillingModes",
        service_pb.BatchResolveBillingModesRequest(workspace_ids=[BYOK] * 1001),
        "COUNT_OUT_OF_RANGE",
        ["workspace_ids"],
    ),
    "a batch of bad ids": (
        "BatchResolveBillingModes",
        service_pb.BatchResolveBillingModesRequest(workspace_ids=[BYOK, *["\U0001f600" * 500] * 400]),
        "WORKSPACE_ID_INVALID",
        [f"workspace_ids[{index}]" for index in range(1, 21)],
    ),
    "no change": (
        "SetWorkspaceBillingMode",
        service_pb.SetWorkspaceBillingModeRequest(workspace_id=BYOK),
        "CHANGE_REQUIRED",
        ["change"],
    ),
    "no mode": (
        "SetWorkspaceBillingMode",
        service_pb.SetWorkspaceBillingModeRequest(workspace_id=BYOK, mode=pb.BILLING_MODE_UNSPECIFIED),
        "MODE_INVALID",
        ["mode"],
    ),
    "absurd keys": (
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(workspace_id=BYOK, secret_keys=["A", "=" * 10_000]),
        "SECRET_KEY_INVALID",
        ["secret_keys[1]"],
    ),
}


@pytest.mark.parametrize(("method", "request_", "reason", "fields"), BAD.values(), ids=BAD)
async def test_bad_input_arrives_at_the_client_with_its_fields(
    method: str, request_: Message, reason: str, fields: list[str], harness: Harness
) -> None:
    code, _, details = await harness.failure(method, request_)

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert only(details, error_details_pb2.ErrorInfo).reason == reason
    violations = only(details, error_details_pb2.BadRequest).field_violations
    assert [each.field for each in violations] == fields
    assert all(each.description for each in violations)
    assert harness.repository.calls == 0


async def test_an_oversized_message_is_refused_and_the_server_goes_on(harness: Harness) -> None:
    huge = service_pb.PlanProvisionEnvRequest(env_keys=["x" * (5 << 20)])

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.call("PlanProvisionEnv", huge)

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await harness.call("ResolveBillingMode", DECISIONS["ResolveBillingMode"])


async def test_a_set_is_idempotent_and_answers_what_was_and_what_is(harness: Harness) -> None:
    request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=INHERITS, mode=pb.BILLING_MODE_DISABLED)

    first = await harness.call("SetWorkspaceBillingMode", request)
    second = await harness.call("SetWorkspaceBillingMode", request)

    assert first.previous.resolved_mode == pb.BILLING_MODE_BYOK
    assert first.previous.source == pb.BILLING_MODE_SOURCE_ORG_DEFAULT
    assert first.billing_mode == second.billing_mode
    assert second.previous == second.billing_mode.resolution
    assert len(harness.repository.changes) == 1
    assert first.billing_mode.resolution.workspace_override == "disabled"


async def test_an_etag_guards_a_write_and_a_stale_one_comes_back_with_the_current_state(harness: Harness) -> None:
    get = service_pb.GetWorkspaceBillingModeRequest(workspace_id=INHERITS)
    etag = (await harness.call("GetWorkspaceBillingMode", get)).billing_mode.etag
    request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=INHERITS, mode=pb.BILLING_MODE_BYOK, etag=etag)

    written = (await harness.call("SetWorkspaceBillingMode", request)).billing_mode
    code, _, details = await harness.failure("SetWorkspaceBillingMode", request)

    assert etag
    assert written.etag not in {"", etag}
    assert code is grpc.StatusCode.ABORTED
    assert only(details, error_details_pb2.ErrorInfo).reason == "ETAG_STALE"
    assert only(details, pb.WorkspaceBillingMode) == written
    assert (await harness.call("GetWorkspaceBillingMode", get)).billing_mode == written
    assert written.updated_by == "local"
    assert written.HasField("update_time")


@pytest.mark.parametrize("etag", ["0x0", "\x00", "-1", "00", "1e0", "😀", "9" * 40, "0 "])
async def test_an_etag_that_was_never_ours_is_stale_even_when_nothing_would_change(etag: str, harness: Harness) -> None:
    request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=INHERITS, inherit=pb.Inherit(), etag=etag)

    code, _, _ = await harness.failure("SetWorkspaceBillingMode", request)

    assert code is grpc.StatusCode.ABORTED


async def test_validate_only_checks_everything_and_writes_nothing(harness: Harness) -> None:
    def request(**fields: Any) -> service_pb.SetWorkspaceBillingModeRequest:
        wanted: dict[str, Any] = {"workspace_id": INHERITS, "mode": pb.BILLING_MODE_DISABLED, "validate_only": True}
        return service_pb.SetWorkspaceBillingModeRequest(**{**wanted, **fields})

    get = service_pb.GetWorkspaceBillingModeRequest(workspace_id=INHERITS)
    before = (await harness.call("GetWorkspaceBillingMode", get)).billing_mode

    answer = await harness.call("SetWorkspaceBillingMode", request(etag=before.etag))

    assert answer.billing_mode.resolution.resolved_mode == pb.BILLING_MODE_DISABLED
    assert answer.billing_mode.resolution.workspace_override == "disabled"
    assert answer.billing_mode.etag == before.etag
    assert answer.previous == before.resolution
    assert (await harness.failure("SetWorkspaceBillingMode", request(etag="77")))[0] is grpc.StatusCode.ABORTED
    assert (await harness.failure("SetWorkspaceBillingMode", request(workspace_id=UNKNOWN)))[0] is (
        grpc.StatusCode.NOT_FOUND
    )
    assert harness.repository.changes == []
    assert harness.repository.overrides[INHERITS] is None


async def test_changes_are_listed_newest_first_page_by_page_while_new_ones_arrive(harness: Harness) -> None:
    async def set_mode(workspace: str, mode: Any, reason: str) -> None:
        request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace, mode=mode, reason=reason)
        await harness.call("SetWorkspaceBillingMode", request)

    modes = [pb.BILLING_MODE_DISABLED, pb.BILLING_MODE_BYOK]
    for number in range(7):
        await set_mode(INHERITS, modes[number % 2], f"change {number}")
    await set_mode(BYOK, pb.BILLING_MODE_DISABLED, "of another")

    seen, token = [], ""
    while True:
        page = await harness.call(
            "ListBillingModeChanges",
            service_pb.ListBillingModeChangesRequest(workspace_id=INHERITS, page_size=3, page_token=token),
        )
        seen += [change.reason for change in page.changes]
        token = page.next_page_token
        if not token:
            break
        await set_mode(INHERITS, modes[len(harness.repository.changes) % 2], "arrived meanwhile")

    assert seen == [f"change {number}" for number in reversed(range(7))]
    every = await harness.call("ListBillingModeChanges", service_pb.ListBillingModeChangesRequest())
    assert len(every.changes) == len(harness.repository.changes)
    first = every.changes[-1]
    assert (first.workspace_id, first.new_override, first.principal) == (INHERITS, "disabled", "local")
    assert not first.HasField("previous_override")
    assert first.HasField("change_time")


async def test_a_page_is_50_unless_asked_for_and_500_at_most(harness: Harness) -> None:
    for number in range(520):
        mode = [pb.BILLING_MODE_DISABLED, pb.BILLING_MODE_BYOK][number % 2]
        await harness.call(
            "SetWorkspaceBillingMode", service_pb.SetWorkspaceBillingModeRequest(workspace_id=INHERITS, mode=mode)
        )
    for asked, answered in ((0, 50), (1, 1), (500, 500), (501, 500), (2**31 - 1, 500)):
        page = await harness.call("ListBillingModeChanges", service_pb.ListBillingModeChangesRequest(page_size=asked))
        assert len(page.changes) == answered
        assert page.next_page_token


@pytest.mark.parametrize(
    ("given", "kept"),
    [(["abc-123"], True), ([], False), (["a", "b"], False), (["x" * 129], False), (["with space"], False)],
    ids=["one", "none", "two", "too long", "with a space"],
)
async def test_a_call_is_named_by_its_caller_or_anew_and_the_name_comes_back(
    given: list[str], kept: bool, harness: Harness
) -> None:
    stub: Any = service_grpc.BillingModeServiceStub(harness.channel)
    metadata = tuple(("x-request-id", each) for each in given)
    request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=INHERITS, mode=pb.BILLING_MODE_BYOK)
    call = stub.SetWorkspaceBillingMode(request, timeout=5, metadata=metadata)
    await call

    (name,) = [value for key, value in await call.trailing_metadata() if key == "x-request-id"]

    assert (name in given) == kept
    assert harness.repository.changes[-1].request_id == name
    refused = stub.ResolveBillingMode(
        service_pb.ResolveBillingModeRequest(workspace_id="x"), timeout=5, metadata=(("x-request-id", "named"),)
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await refused
    assert ("x-request-id", "named") in list(await refused.trailing_metadata())


async def test_clearing_inherits_again(harness: Harness) -> None:
    request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=BYOK.upper(), inherit=pb.Inherit())

    answer = await harness.call("SetWorkspaceBillingMode", request)

    assert answer.previous.source == pb.BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE
    assert answer.billing_mode.resolution.source == pb.BILLING_MODE_SOURCE_ORG_DEFAULT
    assert harness.repository.overrides[BYOK] is None


async def test_the_answer_leaves_before_the_callers_deadline(harness: Harness) -> None:
    harness.repository.delay = 30.0

    answer = await harness.call("ResolveBillingMode", DECISIONS["ResolveBillingMode"], deadline=0.4)

    assert answer.resolution.error.reason == DatabaseTimeout.reason


async def test_a_call_without_a_deadline_is_answered_within_the_storage_limit(harness: Harness) -> None:
    harness.repository.delay = 30.0
    stub: Any = service_grpc.BillingModeServiceStub(harness.channel)

    answer = await asyncio.wait_for(stub.ResolveBillingMode(DECISIONS["ResolveBillingMode"]), 5)

    assert answer.resolution.error.reason == DatabaseTimeout.reason


def raises(error: BaseException) -> Callable[..., Any]:
    async def load_override(workspace_id: str, *, budget: float) -> StoredOverride:
        del workspace_id, budget
        raise error

    return load_override


INTERNALS: Final = "host=10.1.2.3 password=hunter2 SELECT * FROM workspaces"
UNEXPECTED: Final[dict[str, tuple[BaseException, grpc.StatusCode, str]]] = {
    "a bug": (KeyError(INTERNALS), grpc.StatusCode.INTERNAL, "internal error"),
    "out of memory": (MemoryError(INTERNALS), grpc.StatusCode.INTERNAL, "internal error"),
    "a cancellation that no caller caused": (
        asyncio.CancelledError(INTERNALS),
        grpc.StatusCode.UNAVAILABLE,
        "the call was interrupted; retry",
    ),
}


@pytest.mark.parametrize(("error", "code", "text"), UNEXPECTED.values(), ids=UNEXPECTED)
async def test_the_unexpected_is_answered_with_constant_text(
    error: BaseException, code: grpc.StatusCode, text: str, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.repository, "load_override", raises(error))

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await harness.call("ResolveBillingMode", DECISIONS["ResolveBillingMode"])

    assert (failed.value.code(), failed.value.details()) == (code, text)
    assert INTERNALS not in str(failed.value)


async def test_a_caller_that_goes_away_leaves_the_server_well(harness: Harness) -> None:
    harness.repository.delay = 0.2
    stub: Any = service_grpc.BillingModeServiceStub(harness.channel)
    for _ in range(20):
        call = stub.ResolveBillingMode(DECISIONS["ResolveBillingMode"], timeout=5)
        await asyncio.sleep(0.005)
        call.cancel()
    harness.repository.delay = 0.0

    answer = await harness.call("ResolveBillingMode", DECISIONS["ResolveBillingMode"])

    assert answer.resolution.resolved_mode == pb.BILLING_MODE_BYOK


async def test_an_unknown_method_is_unimplemented(harness: Harness) -> None:
    call: Any = harness.channel.unary_unary(f"/{SERVICE}/NoSuchMethod")

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(b"", timeout=5)

    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_that_does_not_parse_says_nothing_of_the_server(harness: Harness) -> None:
    call: Any = harness.channel.unary_unary(f"/{SERVICE}/ResolveBillingMode")

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(b"\xff\xff\xff", timeout=5)

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == "request: is not a message of this method"
    details = [unpacked(each) for each in rpc_status.from_call(failed.value).details]
    assert only(details, error_details_pb2.ErrorInfo).reason == "TEXT_INVALID"
    assert [each.field for each in only(details, error_details_pb2.BadRequest).field_violations] == ["request"]
    await harness.call("ResolveBillingMode", DECISIONS["ResolveBillingMode"])


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_is_served_overall_and_for_the_service(service: str, harness: Harness) -> None:
    stub: Any = health_pb2_grpc.HealthStub(harness.channel)

    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_health_of_a_service_that_is_not_here_is_not_found(harness: Harness) -> None:
    stub: Any = health_pb2_grpc.HealthStub(harness.channel)

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)

    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_can_be_watched(harness: Harness) -> None:
    stub: Any = health_pb2_grpc.HealthStub(harness.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5)

    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_decisions_degraded_answers_and_refusals_are_counted(harness: Harness) -> None:
    await harness.call("ResolveBillingMode", DECISIONS["ResolveBillingMode"])
    harness.repository.failure = DatabaseTimeout()
    await harness.call("BatchResolveBillingModes", DECISIONS["BatchResolveBillingModes"])
    await harness.call("ValidateSecretWrite", DECISIONS["ValidateSecretWrite"])

    assert harness.counted("billing_grpc_resolutions_total", mode="byok", source="workspace_override") == 1
    assert harness.counted("billing_grpc_resolutions_total", mode="platform_managed", source="constant_fallback") == 4
    assert harness.counted("billing_grpc_degraded_resolutions_total", reason="DATABASE_TIMEOUT") == 4
    assert harness.counted("billing_grpc_blocked_secret_writes_total", verdict="blocked_platform_managed") == 1
