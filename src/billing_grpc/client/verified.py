"""Accept a server's answer only if the rule could have produced it. Pure.

A client acts on these answers with keys and money. An answer that names an unknown mode or contradicts itself raises
`AnswerInvalid`; the client then uses the `fallback`.
"""

import re
from datetime import UTC, datetime
from typing import Final, NoReturn

from google.protobuf.timestamp_pb2 import Timestamp

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.errors import AnswerInvalid
from billing_grpc.model import (
    BillingModeSource,
    BillingModeSummary,
    BillingModeUpdate,
    Change,
    ChangeKind,
    ModeCount,
    ModeMove,
    Resolution,
    ResolutionError,
    StoredOverride,
    WorkspaceBillingMode,
)
from billing_grpc.resolver import CLOSED, recognise_org_default, recognise_override, resolve
from billing_grpc.wire.messages import CHANGE_KIND_FROM_PROTO, MODE_FROM_PROTO, SOURCE_FROM_PROTO

_ID: Final = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def resolution(message: pb.BillingModeResolution, workspace_id: str, *, what_if: str | None = None) -> Resolution:
    """Return the resolution of a workspace.

    Args:
        message: the answer.
        workspace_id: the workspace of the request, in any case; empty before it exists.
        what_if: the org default that the request assumed.

    Raises:
        AnswerInvalid: it is about another workspace, names an unknown mode or source, or contradicts itself.
    """
    if message.workspace_id != workspace_id.lower():
        refuse("it is about another workspace")
    mode = MODE_FROM_PROTO.get(message.resolved_mode)
    source = SOURCE_FROM_PROTO.get(message.source)
    default = MODE_FROM_PROTO.get(message.org_default)
    if mode is None or source is None or default is None:
        refuse("it names a mode or a source that this version does not know")
    if what_if is not None and default is not (recognise_org_default(what_if) or CLOSED):
        refuse("it does not use the org default of the request")
    text = message.workspace_override if message.HasField("workspace_override") else None
    error = ResolutionError(message.error.reason, message.error.message) if message.HasField("error") else None
    known = error if error is not None else StoredOverride(text)
    # An answer shows an unset org default as platform_managed too; the source is then another.
    published = [default.value, None] if default is CLOSED else [default.value]
    follows = {(each.mode, each.source) for each in (resolve(workspace_id, known, org) for org in published)}
    unread = error is not None or not workspace_id
    if (mode, source) not in follows or (unread and text is not None):
        refuse("it does not follow from its own parts")
    if error is not None and not (error.reason and workspace_id):
        refuse("it holds an error that has no reason, or an error although nothing had to be read")
    return Resolution(message.workspace_id, mode, source, text, default, message.reason, error)


def workspace(
    message: pb.WorkspaceBillingMode, workspace_id: str, *, what_if: str | None = None
) -> WorkspaceBillingMode:
    """Return a workspace with its etag and its last change; arguments as for `resolution`.

    Raises:
        AnswerInvalid: as for `resolution`, or its time is out of range.
    """
    return WorkspaceBillingMode(
        resolution=resolution(message.resolution, workspace_id, what_if=what_if),
        etag=message.etag,
        update_time=_time(message.update_time) if message.HasField("update_time") else None,
        updated_by=message.updated_by,
        name=message.name,
    )


def listed(
    message: pb.WorkspaceBillingMode, request: service_pb.ListWorkspaceBillingModesRequest, *, after: str
) -> WorkspaceBillingMode:
    """Return a workspace of a list.

    Args:
        message: the answer.
        request: the request of the list.
        after: the workspace before it; empty for the first.

    Raises:
        AnswerInvalid: as for `workspace`, or its place in the list is wrong, or the filters exclude it.
    """
    named = message.resolution.workspace_id
    if not _ID.fullmatch(named) or named <= after:
        refuse("its workspaces are not in the order of their ids")
    found = workspace(message, named, what_if=request.org_default if request.HasField("org_default") else None)
    sent = message.resolution
    if request.resolved_mode not in {0, sent.resolved_mode} or request.source not in {0, sent.source}:
        refuse("it shows a workspace that the request left out")
    text = found.resolution.workspace_override
    if request.override and found.resolution.error is None:
        recognised = recognise_override(text) is not None
        if text is None or (recognised and request.override == service_pb.OVERRIDE_FILTER_UNRECOGNISED):
            refuse("it shows a workspace that the request left out")
    return found


def update(
    answer: service_pb.SetWorkspaceBillingModeResponse, workspace_id: str, wanted: str | None
) -> BillingModeUpdate:
    """Return the states after and before a write.

    Args:
        answer: the answer.
        workspace_id: the workspace of the request.
        wanted: the override of the request; `None` to inherit.

    Raises:
        AnswerInvalid: as for `workspace`, or the override is not the wanted one.
    """
    current = workspace(answer.billing_mode, workspace_id)
    if current.resolution.workspace_override != wanted:
        refuse("it shows another mode than the request wrote")
    return BillingModeUpdate(current, resolution(answer.previous, workspace_id))


def summary(answer: service_pb.SummarizeBillingModesResponse, what_if: str | None) -> BillingModeSummary:
    """Return how many workspaces have which mode.

    Args:
        answer: the answer.
        what_if: the org default that the request assumed.

    Raises:
        AnswerInvalid: it names an unknown mode or source, its numbers contradict each other, or its time is out of range.
    """
    try:
        default = MODE_FROM_PROTO[answer.org_default]
        counts = tuple(
            ModeCount(MODE_FROM_PROTO[each.mode], SOURCE_FROM_PROTO[each.source], each.workspaces)
            for each in answer.counts
        )
        moves = tuple(
            ModeMove(MODE_FROM_PROTO[each.from_mode], MODE_FROM_PROTO[each.to_mode], each.workspaces)
            for each in answer.moves
        )
    except KeyError:
        refuse("it names a mode or a source that this version does not know")
    found = BillingModeSummary(counts, answer.unrecognised_overrides, default, _time(answer.read_time), moves)
    numbers = [each.workspaces for each in counts] + [each.workspaces for each in moves]
    if found.workspaces != answer.workspaces or min(numbers, default=1) < 1:
        refuse("its numbers contradict each other")
    others = [each for each in counts if each.source is not BillingModeSource.WORKSPACE_OVERRIDE]
    inherited = {BillingModeSource.ORG_DEFAULT: default, BillingModeSource.CONSTANT_FALLBACK: CLOSED}
    if any(each.mode is not inherited[each.source] for each in others):
        refuse("it does not follow from its own parts")
    # Only workspaces without a mode of their own move, all from one default to the other.
    supposed = None if what_if is None else recognise_org_default(what_if) or CLOSED
    may_move = sum(each.workspaces for each in others)
    if any((each.from_mode, each.to_mode) != (default, supposed) or each.workspaces > may_move for each in moves):
        refuse("it does not follow from its own parts")
    return found


def change(message: pb.BillingModeChange, workspace_id: str) -> Change[str]:
    """Return one entry of the change log.

    Args:
        message: the answer.
        workspace_id: the workspace of the request; empty for all.

    Raises:
        AnswerInvalid: it is about another workspace, or its time is out of range.
    """
    if workspace_id and message.workspace_id != workspace_id.lower():
        refuse("it is about another workspace")
    kind = CHANGE_KIND_FROM_PROTO.get(message.kind, ChangeKind.WORKSPACE)
    if (kind is ChangeKind.WORKSPACE) != bool(message.workspace_id):
        refuse("it holds a change that is neither a workspace's nor the org default's")
    return Change(
        change_id=message.change_id,
        workspace_id=message.workspace_id,
        change_time=_time(message.change_time),
        previous_override=message.previous_override if message.HasField("previous_override") else None,
        new_override=message.new_override if message.HasField("new_override") else None,
        principal=message.principal,
        database_user=message.database_user,
        reason=message.reason,
        request_id=message.request_id,
        actor=message.actor,
        kind=kind,
        server=message.server,
        origin=message.origin,
    )


def _time(sent: Timestamp) -> datetime:
    try:
        return sent.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise AnswerInvalid("the server's answer cannot be used: it holds a time that is out of range") from error


def refuse(why: str) -> NoReturn:
    """Raise `AnswerInvalid` with the contradiction."""
    raise AnswerInvalid(f"the server's answer cannot be used: {why}")
