"""Accept a server's answer about vendor keys only if its parts follow from each other by the rule. Pure.

A key that only the client lists is refused and stripped too: client and server may differ in release or configuration.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from billing_grpc import provision
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import verified
from billing_grpc.client.verified import refuse
from billing_grpc.errors import quoted
from billing_grpc.model import ProvisionPlan, Resolution, SecretKeyVerdict, SecretVerdict, SecretWriteDecision
from billing_grpc.provision import MODE_VARIABLES
from billing_grpc.resolver import CLOSED
from billing_grpc.secret_keys import KeyList, is_reserved, normalise
from billing_grpc.wire.messages import VERDICT_FROM_PROTO, catalogue_from_proto


def secret_write(
    answer: service_pb.ValidateSecretWriteResponse,
    secret_keys: Sequence[str],
    workspace_id: str,
    keys: KeyList,
    *,
    org_wide: bool = False,
) -> SecretWriteDecision:
    """Return whether secrets may be stored under these names.

    Args:
        answer: the answer.
        secret_keys: the names of the request.
        workspace_id: where they would be stored; empty before the workspace exists, and for the whole organisation.
        keys: the vendor keys as the caller knows them.
        org_wide: whether they would be stored for the whole organisation.

    Returns:
        The decision. A key that only `keys` lists is refused too, unless the mode is open. If the answer then has no
        resolution, the client has to ask for the mode (`lacks_mode`).

    Raises:
        AnswerInvalid: it is about other keys, or contradicts its own resolution.
    """
    decided = verified.resolution(answer.resolution, workspace_id) if answer.HasField("resolution") else None
    if [each.secret_key for each in answer.verdicts] != list(secret_keys):
        refuse("it is not about the keys of the request")
    verdicts = tuple(_verdict(each, decided) for each in answer.verdicts)
    if answer.allowed != _all_allowed(verdicts):
        refuse("`allowed` contradicts the verdicts")
    judged = tuple(_stricter(each, decided, keys, org_wide=org_wide) for each in verdicts)
    return SecretWriteDecision(_all_allowed(judged), judged, decided, catalogue_from_proto(answer))


def lacks_mode(decision: SecretWriteDecision) -> bool:
    """Return whether the mode is missing: a key is refused that the client lists and the server does not."""
    blocked = (each.verdict is SecretVerdict.BLOCKED_PLATFORM_MANAGED for each in decision.verdicts)
    return decision.resolution is None and any(blocked)


def _all_allowed(verdicts: Sequence[SecretKeyVerdict]) -> bool:
    return all(each.verdict is SecretVerdict.ALLOWED for each in verdicts)


def _stricter(
    theirs: SecretKeyVerdict, decided: Resolution | None, keys: KeyList, *, org_wide: bool
) -> SecretKeyVerdict:
    """Return the server's verdict, or the client's if only the client refuses."""
    if theirs.verdict is not SecretVerdict.ALLOWED:
        return theirs
    ours = keys.judge(theirs.secret_key, normalise(theirs.secret_key) or "", decided, org_wide=org_wide)
    return theirs if ours.verdict is SecretVerdict.ALLOWED else ours


def doubted(answer: service_pb.ValidateSecretWriteResponse, secret_keys: Sequence[str]) -> list[int]:
    """Return the indexes of the keys that an invalid answer does not plainly allow.

    Return all indexes if the answer has another number of keys than the request, or refuses the request without naming a
    key.
    """
    plain = [each.verdict == pb.SECRET_VERDICT_ALLOWED for each in answer.verdicts]
    if len(plain) != len(secret_keys) or (all(plain) and not answer.allowed):
        return list(range(len(secret_keys)))
    same = [each.secret_key == key for each, key in zip(answer.verdicts, secret_keys, strict=True)]
    return [i for i in range(len(plain)) if not (plain[i] and same[i])]


def _verdict(message: pb.SecretKeyVerdict, decided: Resolution | None) -> SecretKeyVerdict:
    verdict, name = VERDICT_FROM_PROTO.get(message.verdict), normalise(message.secret_key)
    managed = decided is not None and decided.mode is CLOSED
    if verdict is None or name is None:
        refuse("it holds an unknown verdict, or a verdict on a malformed name")
    if is_reserved(name) and verdict is not SecretVerdict.BLOCKED_RESERVED:
        refuse(f"{quoted(name)} is reserved, and its verdict is not that of a reserved name")
    if verdict is SecretVerdict.BLOCKED_PLATFORM_MANAGED and not managed:
        refuse(f"it blocks {quoted(name)} as platform_managed under another mode")
    return SecretKeyVerdict(message.secret_key, verdict, message.message)


def provision_plan(
    answer: service_pb.PlanProvisionEnvResponse, env_keys: Sequence[str] | None, workspace_id: str, keys: KeyList
) -> ProvisionPlan:
    """Return what to do to a container's environment.

    Args:
        answer: the answer.
        env_keys: the names present in the environment; None if they are not known.
        workspace_id: the container's workspace; empty before it exists.
        keys: the vendor keys as the caller knows them; they are stripped in addition to the server's.

    Raises:
        AnswerInvalid: it strips under an open mode, or does not set the variables of its mode.
    """
    decided = verified.resolution(answer.resolution, workspace_id)
    strip, managed = set(answer.strip_keys), decided.mode is CLOSED
    if strip and not managed:
        refuse("it strips keys under an open mode")
    if any(is_reserved(normalise(key) or "") for key in strip):
        refuse("it strips the platform's own variables")
    if managed and any(map(keys.holds, answer.set_env)):
        refuse("it sets a vendor key under platform_managed")
    if any(not provision.can_be_variable(name) or "\0" in value for name, value in answer.set_env.items()):
        refuse("it sets a variable whose name or value is invalid")
    if any(answer.set_env.get(each) != decided.mode.value for each in MODE_VARIABLES):
        refuse("it does not set the mode that it resolved")
    if answer.route_via_platform_proxy != managed:
        refuse("it must use the proxy under platform_managed, and only there")
    made = ProvisionPlan(
        decided, (), dict(answer.set_env), answer.route_via_platform_proxy, catalogue_from_proto(answer)
    )
    return completed(made, strip, answer.suspect_keys, env_keys, keys)


def completed(
    made: ProvisionPlan,
    strip_keys: Iterable[str],
    suspect_keys: Iterable[str],
    env_keys: Iterable[str] | None,
    keys: KeyList,
) -> ProvisionPlan:
    """Return a plan that strips the keys of both lists: client and server may differ in release or configuration.

    Args:
        made: the plan.
        strip_keys: the names that the server strips, of all calls.
        suspect_keys: the names that the server suspects, of all calls.
        env_keys: the names present in the environment; None if they are not known.
        keys: the vendor keys as the caller knows them.
    """
    full = provision.plan(made.resolution, keys, env_keys, also_strip=strip_keys)
    suspects = set(suspect_keys).intersection(env_keys or ()) - set(full.strip_keys)
    return replace(made, strip_keys=full.strip_keys, blocked=full.blocked, suspect_keys=tuple(sorted(suspects)))
