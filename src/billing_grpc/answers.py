"""What a server answered, taken only where it follows from its own parts by the rule. Pure.

A client acts on these answers with keys and money, so a mode it does not know, or an answer that contradicts itself, is no
answer: `AnswerInvalid`, for which `closed` has the one to act on.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NoReturn

from google.protobuf.timestamp_pb2 import Timestamp

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.convert import MODE_FROM_PROTO, SOURCE_FROM_PROTO, VERDICT_FROM_PROTO
from billing_grpc.errors import AnswerInvalid, quoted
from billing_grpc.model import (
    BillingMode,
    BillingModeUpdate,
    ListedChange,
    ProvisionPlan,
    Resolution,
    ResolutionError,
    SecretKeyVerdict,
    SecretVerdict,
    SecretWriteDecision,
    StoredOverride,
    WorkspaceBillingMode,
)
from billing_grpc.provision import MODE_VARIABLES
from billing_grpc.resolver import CLOSED, recognise_org_default, resolve
from billing_grpc.secrets import KeyList, is_reserved, normalise

_OPEN: Final = frozenset({BillingMode.BYOK, BillingMode.DISABLED})


def resolution(message: pb.BillingModeResolution, workspace_id: str, *, what_if: str | None = None) -> Resolution:
    """The resolution of a workspace.

    Args:
        message: the answer.
        workspace_id: the one asked about, in any case; empty for none.
        what_if: the org default that the request supposed.

    Raises:
        AnswerInvalid: it is about another workspace, names a mode or source that is unknown here, or does not follow from
            its own parts.
    """
    if message.workspace_id != workspace_id.lower():
        _refuse("it is about another workspace")
    mode = MODE_FROM_PROTO.get(message.resolved_mode)
    source = SOURCE_FROM_PROTO.get(message.source)
    default = MODE_FROM_PROTO.get(message.org_default)
    if mode is None or source is None or default is None:
        _refuse("it names a mode or a source that this version does not know")
    if what_if is not None and default is not (recognise_org_default(what_if) or CLOSED):
        _refuse("it does not use the org default of the request")
    text = message.workspace_override if message.HasField("workspace_override") else None
    error = ResolutionError(message.error.reason, message.error.message) if message.HasField("error") else None
    known = error if error is not None else StoredOverride(text)
    # An org default of platform_managed also stands for one that is unset, which another source then decided.
    published = [default.value, None] if default is CLOSED else [default.value]
    follows = {(each.mode, each.source) for each in (resolve(workspace_id, known, org) for org in published)}
    unread = error is not None or not workspace_id
    if (mode, source) not in follows or (unread and text is not None):
        _refuse("it does not follow from its own parts")
    if error is not None and not (error.reason and workspace_id):
        _refuse("it holds an error without a reason, or where nothing had to be read")
    return Resolution(message.workspace_id, mode, source, text, default, message.reason, error)


def secret_write(
    answer: service_pb.ValidateSecretWriteResponse, secret_keys: Sequence[str], workspace_id: str, keys: KeyList
) -> SecretWriteDecision:
    """Whether secrets may be stored under these names.

    Args:
        answer: the answer.
        secret_keys: the names asked about.
        workspace_id: where they would be stored; empty for no workspace and for the whole organisation.
        keys: the vendor keys as the caller knows them.

    Raises:
        AnswerInvalid: it is about other keys, or allows what its own resolution, or this list, forbids.
    """
    decided = resolution(answer.resolution, workspace_id) if answer.HasField("resolution") else None
    if [each.secret_key for each in answer.verdicts] != list(secret_keys):
        _refuse("it is not about the keys of the request")
    verdicts = tuple(_verdict(each, decided, keys) for each in answer.verdicts)
    if answer.allowed != all(each.verdict is SecretVerdict.ALLOWED for each in verdicts):
        _refuse("`allowed` contradicts the verdicts")
    return SecretWriteDecision(answer.allowed, verdicts, decided)


def doubted(answer: service_pb.ValidateSecretWriteResponse, secret_keys: Sequence[str]) -> list[int]:
    """Indexes of the keys that an invalid answer does not plainly allow.

    All, when it answers fewer or more keys than were asked about, or refuses the whole without saying which.
    """
    plain = [each.verdict == pb.SECRET_VERDICT_ALLOWED for each in answer.verdicts]
    if len(plain) != len(secret_keys) or (all(plain) and not answer.allowed):
        return list(range(len(secret_keys)))
    same = [each.secret_key == key for each, key in zip(answer.verdicts, secret_keys, strict=True)]
    return [i for i in range(len(plain)) if not (plain[i] and same[i])]


def _verdict(message: pb.SecretKeyVerdict, decided: Resolution | None, keys: KeyList) -> SecretKeyVerdict:
    verdict, name = VERDICT_FROM_PROTO.get(message.verdict), normalise(message.secret_key)
    opens = decided is not None and decided.mode in _OPEN
    closes = decided is not None and decided.mode is CLOSED
    if verdict is None or name is None:
        _refuse("it holds a verdict that this version does not know, or one on what is no key's name")
    if is_reserved(name) != (verdict is SecretVerdict.BLOCKED_RESERVED):
        _refuse(f"the verdict on {quoted(name)} is not that on a reserved name, or the name is not reserved")
    if verdict is SecretVerdict.ALLOWED and keys.needs_mode(name) and not opens:
        _refuse(f"it allows {quoted(name)}, which only an open mode can")
    if verdict is SecretVerdict.BLOCKED_PLATFORM_MANAGED and not closes:
        _refuse(f"it blocks {quoted(name)} as platform_managed, which its mode is not")
    return SecretKeyVerdict(message.secret_key, verdict, message.message)


def provision_plan(
    answer: service_pb.PlanProvisionEnvResponse, env_keys: Sequence[str], workspace_id: str, keys: KeyList
) -> ProvisionPlan:
    """What to do to a container's environment.

    Args:
        answer: the answer.
        env_keys: the names present in the environment, as asked about.
        workspace_id: the container's workspace; empty before it exists.
        keys: the vendor keys as the caller knows them.

    Raises:
        AnswerInvalid: it leaves a listed key in, strips under an open mode, or does not set what its mode says.
    """
    decided = resolution(answer.resolution, workspace_id)
    strip, closes = set(answer.strip_keys), decided.mode is CLOSED
    if closes:
        spelt = {key for key in env_keys if (name := normalise(key)) is not None and keys.needs_mode(name)}
        if not strip.issuperset(keys.names) or not strip.issuperset(spelt):
            _refuse("it leaves vendor keys in under platform_managed")
    elif strip:
        _refuse("it strips keys under a mode that strips none")
    named = {key: normalise(key) for key in (*answer.strip_keys, *answer.set_env)}
    if any(is_reserved(named[key] or "") for key in strip):
        _refuse("it strips the platform's own variables")
    if closes and any(keys.needs_mode(named[key] or "") for key in answer.set_env):
        _refuse("it sets a vendor key under platform_managed")
    if any(not name or "=" in name or "\0" in name + value for name, value in answer.set_env.items()):
        _refuse("it sets what can be no variable")
    if any(answer.set_env.get(each) != decided.mode.value for each in MODE_VARIABLES):
        _refuse("it does not set the mode that it resolved")
    if answer.route_via_platform_proxy != closes:
        _refuse("the proxy is for platform_managed and for nothing else")
    return ProvisionPlan(decided, tuple(sorted(strip)), dict(answer.set_env), answer.route_via_platform_proxy)


def workspace(message: pb.WorkspaceBillingMode, workspace_id: str) -> WorkspaceBillingMode:
    """A workspace as administration sees it.

    Raises:
        AnswerInvalid: as `resolution`, or its time is none.
    """
    return WorkspaceBillingMode(
        resolution=resolution(message.resolution, workspace_id),
        etag=message.etag,
        update_time=_time(message.update_time) if message.HasField("update_time") else None,
        updated_by=message.updated_by,
    )


def update(
    answer: service_pb.SetWorkspaceBillingModeResponse, workspace_id: str, wanted: str | None
) -> BillingModeUpdate:
    """What a write left behind and found; `wanted` is the override that it was to leave.

    Raises:
        AnswerInvalid: as `workspace`, or it left another override.
    """
    current = workspace(answer.billing_mode, workspace_id)
    if current.resolution.workspace_override != wanted:
        _refuse("it says that another mode was written than the request's")
    return BillingModeUpdate(current, resolution(answer.previous, workspace_id))


def change(message: pb.BillingModeChange, workspace_id: str) -> ListedChange:
    """One entry of the change log.

    Raises:
        AnswerInvalid: it is about another workspace than the one asked about, or its time is none.
    """
    if workspace_id and message.workspace_id != workspace_id.lower():
        _refuse("it is about another workspace")
    return ListedChange(
        change_id=message.change_id,
        workspace_id=message.workspace_id,
        change_time=_time(message.change_time),
        previous_override=message.previous_override if message.HasField("previous_override") else None,
        new_override=message.new_override if message.HasField("new_override") else None,
        principal=message.principal,
        database_user=message.database_user,
        reason=message.reason,
        request_id=message.request_id,
    )


def _time(sent: Timestamp) -> datetime:
    try:
        return sent.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise AnswerInvalid("the server's answer cannot be used: it holds a time that is none") from error


def _refuse(why: str) -> NoReturn:
    raise AnswerInvalid(f"the server's answer cannot be used: {why}")
