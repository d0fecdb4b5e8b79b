"""The Python client passes every conformance vector, over real gRPC."""

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import pytest_asyncio

from billing_grpc.addresses import TcpAddress
from billing_grpc.client import BillingClient
from billing_grpc.conformance.cases import METADATA_KEY, ApplyCase, Case, load, load_apply, matches
from billing_grpc.conformance.server import serving
from billing_grpc.model import ProvisionPlan, Resolution, SecretWriteDecision, StoredOverride
from billing_grpc.provision import apply
from billing_grpc.resolver import resolve as rule

NOBODY: Final = "127.0.0.1:1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target() -> AsyncIterator[str]:
    async with serving(TcpAddress("127.0.0.1", 0)) as target:
        yield target


@pytest.mark.parametrize("case", load(), ids=lambda case: case.id)
@pytest.mark.asyncio(loop_scope="module")
async def test_the_client_answers_as_the_vector_says(target: str, case: Case) -> None:
    client = BillingClient(
        NOBODY if case.behaviour == "unreachable" else target,
        blocked_keys=case.blocked_keys,
        extra_blocked_keys=case.extra_blocked_keys,
        timeout=case.timeout,
        metadata=[(METADATA_KEY, case.id)],
    )
    async with client:
        answer = await ask(client, case)

    assert matches(case.expect, answer), answer


async def ask(client: BillingClient, case: Case) -> Any:
    request: Any = case.request
    workspace_id = request.get("workspace_id", "")
    match case.method:
        case "ResolveBillingMode":
            return resolution(await client.resolve(workspace_id, org_default=request.get("org_default")))
        case "BatchResolveBillingModes":
            return [resolution(each) for each in await client.resolve_many(request["workspace_ids"])]
        case "ValidateSecretWrite":
            org_wide = "org_wide" in request
            keys = request["secret_keys"]
            return secrets(await client.validate_secret_write(keys, workspace_id=workspace_id, org_wide=org_wide))
        case "PlanProvisionEnv":
            return plan(await client.plan_provision_env(workspace_id, request.get("env_keys") or None))
    raise AssertionError(case.method)


def resolution(answer: Resolution) -> dict[str, Any]:
    return {
        "workspace_id": answer.workspace_id,
        "mode": answer.mode.value,
        "source": answer.source.value,
        "workspace_override": answer.workspace_override,
        "org_default": answer.org_default.value,
        "error": None if answer.error is None else answer.error.reason,
    }


def secrets(answer: SecretWriteDecision) -> dict[str, Any]:
    return {
        "allowed": answer.allowed,
        "verdicts": [{"secret_key": each.secret_key, "verdict": each.verdict.value} for each in answer.verdicts],
        "resolution": None if answer.resolution is None else resolution(answer.resolution),
    }


def plan(answer: ProvisionPlan) -> dict[str, Any]:
    return {
        "resolution": resolution(answer.resolution),
        "strip_keys": list(answer.strip_keys),
        "set_env": answer.set_env,
        "route_via_platform_proxy": answer.route_via_platform_proxy,
    }


@pytest.mark.parametrize("case", load_apply(), ids=lambda case: case.name)
def test_a_plan_is_applied_as_the_vector_says(case: ApplyCase) -> None:
    decided = rule("", StoredOverride(case.mode), None)
    made = ProvisionPlan(decided, case.strip_keys, dict(case.set_env), route_via_platform_proxy=True)

    assert apply(made, case.env) == case.expect
