"""The policy that ships with the contract: complete, valid for gRPC, and what a channel then does."""

import json
from typing import Any

import grpc
import pytest

from billing_grpc import service_config
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.errors import DatabaseUnreachable
from billing_grpc.testing import InMemoryRepository, running_server

WORKSPACE = "7f1fc6a0-0000-4000-8000-000000000001"
SERVICE = service_pb.DESCRIPTOR.services_by_name["BillingModeService"]


def test_every_method_has_one_timeout_and_retries_only_what_may_be_repeated() -> None:
    policy = json.loads(service_config.load())
    methods = [name["method"] for entry in policy["methodConfig"] for name in entry["name"]]

    assert sorted(methods) == sorted(method.name for method in SERVICE.methods)
    assert {name["service"] for entry in policy["methodConfig"] for name in entry["name"]} == {SERVICE.full_name}
    for entry in policy["methodConfig"]:
        assert float(entry["timeout"].removesuffix("s")) > 0
        # A server that stops ends with CANCELLED what had arrived and not begun.
        assert entry["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]


class Recovering(InMemoryRepository):
    """Fails a number of times, then works."""

    def __init__(self, failures: int) -> None:
        super().__init__({WORKSPACE: None})
        self.failures_left = failures

    async def _answer(self, budget: float) -> None:
        self.failure = DatabaseUnreachable() if self.failures_left > 0 else None
        self.failures_left -= 1
        await super()._answer(budget)


@pytest.mark.parametrize(("failures", "calls", "answered"), [(0, 1, True), (2, 3, True), (5, 3, False)])
async def test_a_channel_with_the_policy_repeats_what_was_unavailable_three_times_in_all(
    failures: int, calls: int, answered: bool
) -> None:
    repository = Recovering(failures)
    async with (
        running_server(repository) as target,
        grpc.aio.insecure_channel(target, options=service_config.channel_options()) as channel,
    ):
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        request = service_pb.GetWorkspaceBillingModeRequest(workspace_id=WORKSPACE)
        call = stub.GetWorkspaceBillingMode(request)
        assert await call.code() is (grpc.StatusCode.OK if answered else grpc.StatusCode.UNAVAILABLE)
    assert repository.calls == calls


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
def test_every_method_has_its_timeout_for_callers_to_give(method: str) -> None:
    assert service_config.timeout(method) == 5.0


def test_the_channel_itself_is_given_no_timeout() -> None:
    options = dict(service_config.channel_options())

    assert "timeout" not in str(options["grpc.service_config"])
