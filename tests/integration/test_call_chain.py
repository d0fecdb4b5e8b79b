"""What happens around every call: its line in the log, its place, and errors that end in one place."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.server.auth.principals import Principals, token_digest
from billing_grpc.server.auth.principals_file import FixedPrincipals
from billing_grpc.server.listener import AccessPolicy
from billing_grpc.server.servicer import BillingModeService
from billing_grpc.server.settings.limits import Limits
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.testing import InMemoryRepository, running_server

WORKSPACE: Final = "7f1fc6a0-0000-4000-8000-000000000001"
SERVICE: Final = "/molecule.billing.v1.BillingModeService/"
RESOLVE: Final = service_pb.ResolveBillingModeRequest(workspace_id=WORKSPACE)
WRONG: Final = service_pb.ResolveBillingModeRequest(workspace_id="not one")
KNOWN: Final = Principals.parse(
    f'[[principal]]\nname = "gate"\nrole = "reader"\ntoken_sha256 = ["{token_digest("right-token")}"]'
)
RIGHT: Final = (("authorization", "Bearer right-token"), ("x-anything", "said-in-metadata"))


class Site:
    """A server that knows one reader, a client, and what the server logged."""

    def __init__(self, target: str, channel: grpc.aio.Channel, repository: InMemoryRepository, logged: Any) -> None:
        self.target = target
        self.billing: Any = service_grpc.BillingModeServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        self.repository = repository
        self.logged = logged

    async def code(self, request: Any = RESOLVE, metadata: Any = RIGHT, method: str = "ResolveBillingMode") -> Any:
        call = getattr(self.billing, method)(request, timeout=10, metadata=metadata)
        return await call.code()

    async def calls(self, number: int) -> list[dict[str, Any]]:
        """The lines of calls, once there are as many."""
        async with asyncio.timeout(10):
            while len(found := [each for each in self.logged if each["event"] == "call"]) < number:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # for what would be logged after the line
        assert len(found) == number
        return found


@asynccontextmanager
async def serving(limits: Limits | None = None, access_policy: AccessPolicy | None = None) -> AsyncIterator[Site]:
    repository = InMemoryRepository({WORKSPACE: "byok"})
    access_policy = access_policy or AccessPolicy(FixedPrincipals(KNOWN))
    with capture_logs() as logged:
        async with (
            running_server(repository, access_policy=access_policy, limits=limits, storage_timeout=5.0) as target,
            grpc.aio.insecure_channel(target) as channel,
        ):
            yield Site(target, channel, repository, logged)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as site:
        yield site


SET: Final = service_pb.SetWorkspaceBillingModeRequest(workspace_id=WORKSPACE)
LINES: Final[dict[str, tuple[str, Any, Any, str, str | None]]] = {
    "answered": ("ResolveBillingMode", RESOLVE, RIGHT, "OK", "gate"),
    "a wrong request": ("ResolveBillingMode", WRONG, RIGHT, "INVALID_ARGUMENT", "gate"),
    "no credentials": ("ResolveBillingMode", RESOLVE, RIGHT[1:], "UNAUTHENTICATED", None),
    "a role that may not": ("SetWorkspaceBillingMode", SET, RIGHT, "PERMISSION_DENIED", "gate"),
}


@pytest.mark.parametrize(("method", "request_", "metadata", "code", "principal"), LINES.values(), ids=LINES)
async def test_a_call_leaves_one_line_that_says_how_it_ended_and_who_called(
    method: str, request_: Any, metadata: Any, code: str, principal: str | None, site: Site
) -> None:
    assert (await site.code(request_, metadata, method)).name == code

    (line,) = await site.calls(1)
    assert line["method"] == SERVICE + method
    assert (line["code"], line["principal"]) == (code, principal)
    assert line["role"] == (None if principal is None else "reader")
    assert line["log_level"] == "info"
    assert set(line) == {
        *("event", "log_level", "method", "code", "duration_ms", "principal", "role", "request_id", "workspace"),
    }


async def test_a_decision_may_take_longer_than_a_request_may_take_to_arrive() -> None:
    async with serving(Limits(request_timeout=0.2)) as site:
        site.repository.delay = 0.5
        assert (await site.code()).name == "OK"


async def test_no_line_holds_anything_of_the_metadata_or_the_request(site: Site) -> None:
    for metadata in (RIGHT, RIGHT[1:], (("authorization", "Bearer wrong-token"), *RIGHT[1:])):
        for request in (RESOLVE, WRONG):
            await site.code(request, metadata)

    await site.calls(6)
    for held in ("right-token", "wrong-token", "Bearer", "said-in-metadata", "not one"):
        assert held not in str(site.logged)


# id: a call, and what its line says it was about
ABOUT: Final[dict[str, tuple[str, Any, dict[str, object]]]] = {
    "a decision": (
        "ResolveBillingMode",
        service_pb.ResolveBillingModeRequest(workspace_id=WORKSPACE.upper()),
        {"workspace": WORKSPACE},
    ),
    "before it exists": ("ResolveBillingMode", service_pb.ResolveBillingModeRequest(), {"workspace": ""}),
    "what is not an id": ("ResolveBillingMode", WRONG, {"workspace": None}),
    "a batch": (
        "BatchResolveBillingModes",
        service_pb.BatchResolveBillingModesRequest(workspace_ids=[WORKSPACE] * 3),
        {"workspaces": 3},
    ),
    "a batch that is wrong": (
        "BatchResolveBillingModes",
        service_pb.BatchResolveBillingModesRequest(workspace_ids=[WORKSPACE, "not one"]),
        {"workspace": None},
    ),
    "a look": (
        "GetWorkspaceBillingMode",
        service_pb.GetWorkspaceBillingModeRequest(workspace_id=WORKSPACE.upper()),
        {"workspace": WORKSPACE},
    ),
    "a write": (
        "SetWorkspaceBillingMode",
        service_pb.SetWorkspaceBillingModeRequest(workspace_id=WORKSPACE.upper(), inherit=pb.Inherit()),
        {"workspace": WORKSPACE},
    ),
    "a secret": (
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(workspace_id=WORKSPACE.upper(), secret_keys=["X"]),
        {"workspace": WORKSPACE},
    ),
    "everybody's secret": (
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(org_wide=pb.OrgWide(), secret_keys=["X"]),
        {"workspace": ""},
    ),
    "a plan": (
        "PlanProvisionEnv",
        service_pb.PlanProvisionEnvRequest(workspace_id=WORKSPACE.upper()),
        {"workspace": WORKSPACE},
    ),
    "the log": (
        "ListBillingModeChanges",
        service_pb.ListBillingModeChangesRequest(workspace_id=WORKSPACE.upper()),
        {"workspace": WORKSPACE},
    ),
}


@pytest.mark.parametrize(("method", "request_", "about"), ABOUT.values(), ids=ABOUT)
async def test_a_line_says_which_workspace_was_asked_about_and_never_what_was_sent(
    method: str, request_: Any, about: dict[str, object]
) -> None:
    async with serving(access_policy=AccessPolicy(local_admin=True)) as site:
        await site.code(request_, (), method)

        (line,) = await site.calls(1)
    assert {name: line[name] for name in line if name.startswith("workspace")} == about


async def test_health_checks_are_logged_below_what_is_usually_shown(site: Site) -> None:
    await site.health.Check(health_pb2.HealthCheckRequest(), timeout=5)

    (line,) = await site.calls(1)
    assert (line["log_level"], line["method"], line["code"]) == ("debug", "/grpc.health.v1.Health/Check", "OK")


async def test_a_caller_that_goes_away_is_a_cancelled_call_and_no_error(site: Site) -> None:
    site.repository.delay = 4.0
    call = site.billing.ResolveBillingMode(RESOLVE, timeout=10, metadata=RIGHT)
    while not site.repository.calls:
        await asyncio.sleep(0.01)
    call.cancel()

    (line,) = await site.calls(1)
    assert line["code"] == "CANCELLED"
    assert {each["log_level"] for each in site.logged} == {"info"}


async def test_a_handler_that_has_aborted_by_itself_is_no_unexpected_error(site: Site) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await site.health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND

    (line,) = await site.calls(1)
    assert line["code"] == "NOT_FOUND"
    assert [each["event"] for each in site.logged] == ["call"]


async def test_an_answer_that_is_no_message_is_an_internal_error_in_constant_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing(*_: object) -> None:
        """Answers as no method may, which the type checker would refuse."""

    monkeypatch.setattr(BillingModeService, "ResolveBillingMode", nothing)
    async with serving() as site:
        call = site.billing.ResolveBillingMode(RESOLVE, timeout=10, metadata=RIGHT)

        assert (await call.code(), await call.details()) == (grpc.StatusCode.INTERNAL, "internal error")
        (line,) = await site.calls(1)
    assert line["code"] == "INTERNAL"


async def test_a_place_is_free_again_however_the_call_ended() -> None:
    async with serving(Limits(max_concurrent_calls=1)) as site:
        for _ in range(3):
            assert await site.code(WRONG) is grpc.StatusCode.INVALID_ARGUMENT
        site.repository.delay = 4.0
        before = site.repository.calls
        call = site.billing.ResolveBillingMode(RESOLVE, timeout=10, metadata=RIGHT)
        while site.repository.calls == before:
            await asyncio.sleep(0.01)
        assert await site.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        call.cancel()
        await site.calls(5)
        site.repository.delay = 0.0
        assert await site.code() is grpc.StatusCode.OK


async def test_a_place_is_free_again_and_the_call_counted_though_its_line_cannot_be_made() -> None:
    def broken(*_: object) -> NoReturn:
        raise OSError(28, "no space left")

    metrics, before = Metrics(), structlog.get_config()["processors"]
    structlog.configure(processors=[broken])
    try:
        async with (
            running_server(InMemoryRepository(), limits=Limits(max_concurrent_calls=1), metrics=metrics) as target,
            grpc.aio.insecure_channel(target) as channel,
        ):
            billing: Any = service_grpc.BillingModeServiceStub(channel)
            for _ in range(3):
                await billing.ResolveBillingMode(RESOLVE, timeout=10)
    finally:
        structlog.configure(processors=before)
    labels = {"method": "BillingModeService/ResolveBillingMode", "code": "OK"}
    assert metrics.registry.get_sample_value("billing_grpc_calls_total", labels) == 3


async def test_a_stranger_is_told_to_show_who_it_is_even_when_every_place_is_taken() -> None:
    async with serving(Limits(max_concurrent_calls=1)) as site:
        site.repository.delay = 1.0
        running = asyncio.ensure_future(site.code())
        while not site.repository.calls:
            await asyncio.sleep(0.01)
        assert await site.code(metadata=()) is grpc.StatusCode.UNAUTHENTICATED
        assert await site.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await running is grpc.StatusCode.OK


async def test_a_call_that_is_cancelled_before_its_request_came_is_logged_as_cancelled() -> None:
    async with running_server(InMemoryRepository()) as target, grpc.aio.insecure_channel(target) as channel:
        with capture_logs() as logs:
            for _ in range(20):
                call: Any = channel.stream_unary("/molecule.billing.v1.BillingModeService/ResolveBillingMode")(
                    timeout=5
                )
                await asyncio.sleep(0.02)
                call.cancel()
            deadline = asyncio.get_running_loop().time() + 10
            while len(logs) < 20 and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.02)

    assert {line["code"] for line in logs if line["event"] == "call"} == {"CANCELLED"}


async def test_a_call_that_ended_before_it_was_looked_at_is_not_logged_as_unauthenticated() -> None:
    # A channel whose threads go on while the loop of the server stands still.
    async with running_server(InMemoryRepository()) as target:
        with grpc.insecure_channel(target) as channel, capture_logs() as logs:
            billing: Any = service_grpc.BillingModeServiceStub(channel)
            await asyncio.to_thread(billing.ResolveBillingMode, service_pb.ResolveBillingModeRequest())
            for _ in range(20):
                billing.ResolveBillingMode.future(service_pb.ResolveBillingModeRequest(), timeout=0.1)
            time.sleep(0.3)  # noqa: ASYNC251 - the server runs in this loop too, and must take no call meanwhile
            await asyncio.to_thread(billing.ResolveBillingMode, service_pb.ResolveBillingModeRequest())
    codes = [line["code"] for line in logs if line["event"] == "call"]

    # On a busy machine some calls end before they are sent.
    assert codes.count("OK") == 2
    assert set(codes) == {"OK", "DEADLINE_EXCEEDED"}
