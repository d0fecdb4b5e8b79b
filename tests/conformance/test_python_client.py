"""Both Python clients pass every conformance vector, over real gRPC."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import pytest

from billing_grpc import sync
from billing_grpc.addresses import TcpAddress
from billing_grpc.client import BillingClient
from billing_grpc.conformance.cases import METADATA_KEY, Case, load, load_apply, matches
from billing_grpc.conformance.server import serving
from billing_grpc.model import ProvisionPlan, Resolution, SecretWriteDecision, StoredOverride
from billing_grpc.provision import apply
from billing_grpc.resolver import resolve as rule

NOBODY: Final = "127.0.0.1:1"
AT_ONCE: Final = 4
"""How many cases are played at once: many wait more than they compute."""


class OnAThread:
    """The blocking client, with the methods of the other one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._client = sync.BillingClient(*args, **kwargs)

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        return partial(asyncio.to_thread, getattr(self._client, method))

    async def __aenter__(self) -> None:
        self._client.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self._client.close()


@pytest.mark.parametrize("kind", [BillingClient, OnAThread], ids=["asyncio", "blocking"])
async def test_the_client_answers_as_each_vector_says(kind: Any, subtests: pytest.Subtests) -> None:
    at_once = asyncio.Semaphore(AT_ONCE)

    async def answer_to(case: Case) -> Any:
        client = kind(
            NOBODY if case.behaviour == "unreachable" else target,
            blocked_keys=case.blocked_keys,
            extra_blocked_keys=case.extra_blocked_keys,
            timeout=case.timeout,
            metadata=[(METADATA_KEY, case.id)],
        )
        async with at_once, client:
            return await ask(client, case)

    async with serving(TcpAddress("127.0.0.1", 0)) as target:
        answers = await asyncio.gather(*map(answer_to, load()))
    for case, answer in zip(load(), answers, strict=True):
        with subtests.test(case.id):
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


def test_a_plan_is_applied_as_each_vector_says(subtests: pytest.Subtests) -> None:
    for case in load_apply():
        decided = rule("", StoredOverride(case.mode), None)
        made = ProvisionPlan(decided, case.strip_keys, dict(case.set_env), route_via_platform_proxy=True)

        with subtests.test(case.name):
            assert apply(made, case.env) == case.expect
