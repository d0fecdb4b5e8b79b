"""The closed answers of a client that has no answer it may use. Pure.

Whoever cannot ask acts as if the workspace were `platform_managed`: every listed key is refused and stripped. A key that is
not on the list stays allowed, so that an outage does not block unrelated secrets (contract, sections 2, 4 and 5).
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
    """`platform_managed` from the constant fallback; the workspace is named only where its id is one."""
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
    """Listed and reserved keys refused, and those that are no key's name; the others allowed. Of no keys nothing is.

    Args:
        workspace_id: where the secrets would be stored.
        secret_keys: the names asked about.
        error: why there is no answer.
        keys: the vendor keys.
        doubted: indexes of further keys to refuse, which an invalid answer did not plainly allow.
    """
    decided, doubts = resolution(workspace_id, error), set(doubted)
    verdicts = []
    for index, key in enumerate(secret_keys):
        name = normalise(key)
        # Of an answer with an error the message is the same wherever the secret was to go.
        verdict = invalid_name(key) if name is None else keys.judge(key, name, decided, org_wide=False)
        if index in doubts and verdict.verdict is SecretVerdict.ALLOWED:
            message = "refused: no answer that could be understood judges it; retry"
            verdict = replace(verdict, verdict=SecretVerdict.BLOCKED_PLATFORM_MANAGED, message=message)
        verdicts.append(verdict)
    allowed = bool(verdicts) and all(each.verdict is SecretVerdict.ALLOWED for each in verdicts)
    return SecretWriteDecision(allowed, tuple(verdicts), decided)


def invalid_name(key: str) -> SecretKeyVerdict:
    """The verdict on what is no key's name, which no server is asked about."""
    message = "refused: not a key's name (a letter or _, then letters, digits, _ . or -)"
    return SecretKeyVerdict(key, SecretVerdict.BLOCKED_PLATFORM_MANAGED, message)


def provision_plan(
    workspace_id: str,
    env_keys: Iterable[str],
    error: ResolutionError,
    keys: KeyList,
    *,
    also_strip: Iterable[str] = (),
) -> ProvisionPlan:
    """Every listed key stripped, in any spelling, and the platform's proxy used.

    Args:
        workspace_id: the container's workspace.
        env_keys: names present in the environment.
        error: why there is no answer.
        keys: the vendor keys.
        also_strip: names that an invalid answer wanted stripped; the platform's own, and what can be no name, are left out.
    """
    wanted = [key for key in also_strip if (name := normalise(key)) is not None and not is_reserved(name)]
    return provision.plan(resolution(workspace_id, error), keys, env_keys, also_strip=wanted)
