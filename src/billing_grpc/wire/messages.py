"""Convert values of the model into messages of the contract, and the enums of both into each other."""

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from billing_grpc import validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.errors import FieldViolation, InvalidArgument
from billing_grpc.model import (
    BillingMode,
    BillingModeSource,
    BillingModeSummary,
    Catalogue,
    Change,
    ChangeKind,
    OverrideFilter,
    ProvisionPlan,
    Resolution,
    SecretKeyVerdict,
    SecretVerdict,
    WorkspaceBillingMode,
)
from billing_grpc.selection import Selection

_Filter = TypeVar("_Filter")
_Number = TypeVar("_Number", bound=int)

MODE_TO_PROTO: Final = {
    BillingMode.PLATFORM_MANAGED: pb.BILLING_MODE_PLATFORM_MANAGED,
    BillingMode.BYOK: pb.BILLING_MODE_BYOK,
    BillingMode.DISABLED: pb.BILLING_MODE_DISABLED,
}
MODE_FROM_PROTO: Final = {number: mode for mode, number in MODE_TO_PROTO.items()}
SOURCE_TO_PROTO: Final = {
    BillingModeSource.WORKSPACE_OVERRIDE: pb.BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE,
    BillingModeSource.ORG_DEFAULT: pb.BILLING_MODE_SOURCE_ORG_DEFAULT,
    BillingModeSource.CONSTANT_FALLBACK: pb.BILLING_MODE_SOURCE_CONSTANT_FALLBACK,
}
SOURCE_FROM_PROTO: Final = {number: source for source, number in SOURCE_TO_PROTO.items()}
OVERRIDE_FILTER_TO_PROTO: Final = {
    OverrideFilter.PRESENT: service_pb.OVERRIDE_FILTER_PRESENT,
    OverrideFilter.UNRECOGNISED: service_pb.OVERRIDE_FILTER_UNRECOGNISED,
}
OVERRIDE_FILTER_FROM_PROTO: Final = {number: each for each, number in OVERRIDE_FILTER_TO_PROTO.items()}
CHANGE_KIND_TO_PROTO: Final = {
    ChangeKind.WORKSPACE: pb.BILLING_MODE_CHANGE_KIND_WORKSPACE,
    ChangeKind.ORG_DEFAULT: pb.BILLING_MODE_CHANGE_KIND_ORG_DEFAULT,
}
CHANGE_KIND_FROM_PROTO: Final = {number: kind for kind, number in CHANGE_KIND_TO_PROTO.items()}
VERDICT_TO_PROTO: Final = {
    SecretVerdict.ALLOWED: pb.SECRET_VERDICT_ALLOWED,
    SecretVerdict.BLOCKED_PLATFORM_MANAGED: pb.SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED,
    SecretVerdict.BLOCKED_RESERVED: pb.SECRET_VERDICT_BLOCKED_RESERVED,
}
VERDICT_FROM_PROTO: Final = {number: verdict for verdict, number in VERDICT_TO_PROTO.items()}


def resolution_to_proto(resolution: Resolution) -> pb.BillingModeResolution:
    """Return a resolution as a message."""
    message = pb.BillingModeResolution(
        workspace_id=resolution.workspace_id,
        resolved_mode=MODE_TO_PROTO[resolution.mode],
        source=SOURCE_TO_PROTO[resolution.source],
        org_default=MODE_TO_PROTO[resolution.org_default],
        reason=resolution.reason,
        workspace_override=resolution.workspace_override,
    )
    if resolution.error is not None:
        message.error.reason = resolution.error.reason
        message.error.message = resolution.error.message
    return message


def bytes_around_id(resolution: Resolution) -> tuple[bytes, bytes]:
    """Return the serialised answer to a batch of this workspace alone: the bytes before its id, and those after it.

    Between them, any other id makes the answer for that workspace: all ids have the same length. Joined, the answers of
    several workspaces are one answer for all of them, because a serialised message has no beginning and no end.
    """
    answer = service_pb.BatchResolveBillingModesResponse(resolutions=[resolution_to_proto(resolution)])
    before, _, after = answer.SerializeToString().partition(resolution.workspace_id.encode())
    return before, after


def billing_mode_to_proto(mode: WorkspaceBillingMode) -> pb.WorkspaceBillingMode:
    """Return a workspace's billing mode as a message."""
    message = pb.WorkspaceBillingMode(
        resolution=resolution_to_proto(mode.resolution),
        etag=mode.etag,
        updated_by=mode.updated_by,
        name=mode.name,
    )
    if mode.update_time is not None:
        message.update_time.FromDatetime(mode.update_time)
    return message


def change_to_proto(change: Change[int]) -> pb.BillingModeChange:
    """Return an entry of the change log as a message."""
    message = pb.BillingModeChange(
        change_id=str(change.change_id),
        workspace_id=change.workspace_id,
        previous_override=change.previous_override,
        new_override=change.new_override,
        principal=change.principal,
        database_user=change.database_user,
        reason=change.reason,
        request_id=change.request_id,
        actor=change.actor,
        kind=CHANGE_KIND_TO_PROTO[change.kind],
        server=change.server,
        origin=change.origin,
    )
    message.change_time.FromDatetime(change.change_time)
    return message


def plan_to_proto(plan: ProvisionPlan) -> service_pb.PlanProvisionEnvResponse:
    """Return a plan as a message."""
    return service_pb.PlanProvisionEnvResponse(
        resolution=resolution_to_proto(plan.resolution),
        strip_keys=plan.strip_keys,
        set_env=plan.set_env,
        route_via_platform_proxy=plan.route_via_platform_proxy,
        catalogue=None if plan.catalogue is None else catalogue_to_proto(plan.catalogue),
        suspect_keys=plan.suspect_keys,
    )


def catalogue_to_proto(catalogue: Catalogue) -> pb.Catalogue:
    """Return a catalogue as a message."""
    return pb.Catalogue(set=catalogue.set, version=catalogue.version, digest=catalogue.digest)


def catalogue_from_proto(
    answer: service_pb.PlanProvisionEnvResponse | service_pb.ValidateSecretWriteResponse,
) -> Catalogue | None:
    """Return the catalogue of an answer; None if it does not say one."""
    if not answer.HasField("catalogue"):
        return None
    return Catalogue(answer.catalogue.set, answer.catalogue.version, answer.catalogue.digest)


def verdict_to_proto(verdict: SecretKeyVerdict) -> pb.SecretKeyVerdict:
    """Return a verdict as a message."""
    return pb.SecretKeyVerdict(
        secret_key=verdict.secret_key, verdict=VERDICT_TO_PROTO[verdict.verdict], message=verdict.message
    )


def change_from_proto(request: service_pb.SetWorkspaceBillingModeRequest) -> BillingMode | None:
    """Return the mode that a request sets; None if it says "inherit".

    Raises:
        InvalidArgument: as `validation.change`.
    """
    return validation.change(request.WhichOneof("change"), MODE_FROM_PROTO.get(request.mode), int(request.mode))


def summary_to_proto(summary: BillingModeSummary) -> service_pb.SummarizeBillingModesResponse:
    """Return a summary as a message."""
    message = service_pb.SummarizeBillingModesResponse(
        workspaces=summary.workspaces,
        counts=[
            service_pb.BillingModeCount(
                mode=MODE_TO_PROTO[each.mode], source=SOURCE_TO_PROTO[each.source], workspaces=each.workspaces
            )
            for each in summary.counts
        ],
        unrecognised_overrides=summary.unrecognised_overrides,
        org_default=MODE_TO_PROTO[summary.org_default],
        moves=[
            service_pb.BillingModeMove(
                from_mode=MODE_TO_PROTO[each.from_mode], to_mode=MODE_TO_PROTO[each.to_mode], workspaces=each.workspaces
            )
            for each in summary.moves
        ],
    )
    message.read_time.FromDatetime(summary.read_time)
    return message


def selection_from_proto(request: service_pb.ListWorkspaceBillingModesRequest, org_default: str | None) -> Selection:
    """Return the workspaces that a request asks for; `org_default` is the published one.

    Raises:
        InvalidArgument: FILTER_INVALID if a filter has a number that does not exist, or as `Selection`.
    """
    return Selection(
        org_default=org_default,
        supposed=request.org_default if request.HasField("org_default") else None,
        mode=_filter("resolved_mode", request.resolved_mode, MODE_FROM_PROTO, pb.BillingMode.keys()),
        source=_filter("source", request.source, SOURCE_FROM_PROTO, pb.BillingModeSource.keys()),
        override=_filter("override", request.override, OVERRIDE_FILTER_FROM_PROTO, service_pb.OverrideFilter.keys()),
        would_change=request.would_change,
    )


def change_kind_from_proto(request: service_pb.ListBillingModeChangesRequest) -> ChangeKind | None:
    """Return the kind of changes that a request asks for; None for all.

    Raises:
        InvalidArgument: FILTER_INVALID if the kind has a number that does not exist.
    """
    return _filter("kind", request.kind, CHANGE_KIND_FROM_PROTO, pb.BillingModeChangeKind.keys())


def _filter(field: str, number: _Number, known: Mapping[_Number, _Filter], names: Iterable[str]) -> _Filter | None:
    if number and number not in known:
        problem = f"must be one of {', '.join(names)}; got {number}"
        raise InvalidArgument("FILTER_INVALID", FieldViolation(field, problem))
    return known.get(number)
