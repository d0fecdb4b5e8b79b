"""The fallbacks: what a client answers without a usable answer of the server. Pure.

A fallback treats the workspace as `platform_managed`: every listed key is refused and stripped. A key that is not listed
stays allowed, so that an outage does not block unrelated secrets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from billing_grpc import provision, validation
from billing_grpc.errors import InvalidArgument
from billing_grpc.model import (
    ProvisionPlan,
    Resolution,
    ResolutionError,
    SecretKeyVerdict,
    SecretVerdict,
    SecretWriteDecision,
)
from billing_grpc.resolver import resolve
from billing_grpc.secret_keys import KeyList, is_reserved, normalise


def resolution(workspace_id: str, error: ResolutionError) -> Resolution:
    """Return `platform_managed` from the constant fallback, without the workspace's id if that is malformed."""
    try:
        named = validation.workspace_id(workspace_id)
    except InvalidArgument:
        named = ""
    return resolve(named, error, None)


def secret_write(
    workspace_id: str,
    secret_keys: Sequence[str],
    error: ResolutionError,
    keys: KeyList,
    *,
    doubted: Iterable[int] = (),
) -> SecretWriteDecision:
    """Refuse listed keys, reserved keys and malformed names; allow the others. An empty list is refused.

    Args:
        workspace_id: where the secrets would be stored.
        secret_keys: the names asked about.
        error: why there is no answer.
        keys: the vendor keys.
        doubted: indexes of further keys to refuse, because an invalid answer did not plainly allow them.
    """
    decided, doubts = resolution(workspace_id, error), set(doubted)
    verdicts = []
    for index, key in enumerate(secret_keys):
        name = normalise(key)
        # With an error the verdict does not depend on `org_wide`.
        verdict = invalid_name(key) if name is None else keys.judge(key, name, decided, org_wide=False)
        if index in doubts and verdict.verdict is SecretVerdict.ALLOWED:
            message = "refused: no answer that could be understood judges it; retry"
            verdict = replace(verdict, verdict=SecretVerdict.BLOCKED_PLATFORM_MANAGED, message=message)
        verdicts.append(verdict)
    allowed = bool(verdicts) and all(each.verdict is SecretVerdict.ALLOWED for each in verdicts)
    return SecretWriteDecision(allowed, tuple(verdicts), decided, keys.catalogue)


def invalid_name(key: str) -> SecretKeyVerdict:
    """Return the verdict on a malformed name; no server is asked about it."""
    message = "refused: not a key's name (a letter, digit or _, then letters, digits, _ . or -)"
    return SecretKeyVerdict(key, SecretVerdict.BLOCKED_PLATFORM_MANAGED, message)


def provision_plan(
    workspace_id: str,
    env_keys: Iterable[str] | None,
    error: ResolutionError,
    keys: KeyList,
    *,
    also_strip: Iterable[str] = (),
) -> ProvisionPlan:
    """Strip every listed key, in any spelling, and use the platform's proxy.

    Args:
        workspace_id: the container's workspace.
        env_keys: names present in the environment; None if they are not known.
        error: why there is no answer.
        keys: the vendor keys.
        also_strip: names that an invalid answer wanted stripped; reserved and malformed names are left out.
    """
    wanted = [key for key in also_strip if (name := normalise(key)) is not None and not is_reserved(name)]
    return provision.plan(resolution(workspace_id, error), keys, env_keys, also_strip=wanted)
