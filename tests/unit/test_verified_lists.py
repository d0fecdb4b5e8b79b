"""What a client takes of a list, a summary and the change log: nothing that cannot be true."""

from collections.abc import Callable, Mapping

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import verified
from billing_grpc.errors import AnswerInvalid
from billing_grpc.model import (
    BillingMode,
    BillingModeSource,
    ChangeKind,
    ModeCount,
    ModeMove,
    ResolutionError,
    StoredOverride,
)
from billing_grpc.resolver import resolve
from billing_grpc.wire import messages

FIRST, SECOND = (f"7f1fc6a0-0000-4000-8000-00000000000{number}" for number in "ab")
AFTER_EVERY_TIME = Timestamp(seconds=1 << 40)
Request = service_pb.ListWorkspaceBillingModesRequest


def in_list(
    workspace_id: str, override: str | ResolutionError | None, org_default: str | None = None
) -> pb.WorkspaceBillingMode:
    known = override if isinstance(override, ResolutionError) else StoredOverride(override)
    resolution = resolve(workspace_id, known, org_default)
    return pb.WorkspaceBillingMode(resolution=messages.resolution_to_proto(resolution), etag="4")


LISTED: dict[str, tuple[Request, pb.WorkspaceBillingMode]] = {
    "the next": (Request(), in_list(SECOND, None)),
    "the mode": (Request(resolved_mode=pb.BILLING_MODE_BYOK), in_list(SECOND, "byok")),
    "the source": (Request(source=pb.BILLING_MODE_SOURCE_ORG_DEFAULT), in_list(SECOND, None, "byok")),
    "an override": (Request(override=service_pb.OVERRIDE_FILTER_PRESENT), in_list(SECOND, "byok")),
    "a corrupt override": (Request(override=service_pb.OVERRIDE_FILTER_UNRECOGNISED), in_list(SECOND, "BYOK")),
    "an unreadable override": (
        Request(override=service_pb.OVERRIDE_FILTER_PRESENT),
        in_list(SECOND, ResolutionError("VALUE_UNREADABLE", "two rows")),
    ),
    "the org default": (Request(org_default="disabled"), in_list(SECOND, None, "disabled")),
    "an unusable org default": (Request(org_default="garbage"), in_list(SECOND, None, "garbage")),
}


@pytest.mark.parametrize(("request_", "message"), LISTED.values(), ids=LISTED)
def test_a_workspace_that_a_list_may_show_is_taken(request_: Request, message: pb.WorkspaceBillingMode) -> None:
    found = verified.listed(message, request_, after=FIRST)
    assert (found.resolution.workspace_id, found.etag) == (SECOND, "4")


NOT_LISTED: dict[str, tuple[Request, pb.WorkspaceBillingMode]] = {
    "out of order": (Request(), in_list("00000000-0000-4000-8000-000000000001", None)),
    "twice": (Request(), in_list(FIRST, None)),
    "no id": (Request(), pb.WorkspaceBillingMode()),
    "an id that is not a UUID": (Request(), in_list("x", None)),
    "another mode": (Request(resolved_mode=pb.BILLING_MODE_DISABLED), in_list(SECOND, "byok")),
    "another source": (Request(source=pb.BILLING_MODE_SOURCE_ORG_DEFAULT), in_list(SECOND, "byok")),
    "no override": (Request(override=service_pb.OVERRIDE_FILTER_PRESENT), in_list(SECOND, None)),
    "no corrupt override": (Request(override=service_pb.OVERRIDE_FILTER_UNRECOGNISED), in_list(SECOND, None)),
    "a recognised override": (Request(override=service_pb.OVERRIDE_FILTER_UNRECOGNISED), in_list(SECOND, "byok")),
    "another org default": (Request(org_default="disabled"), in_list(SECOND, None)),
    "an open default for an unusable one": (Request(org_default="garbage"), in_list(SECOND, None, "byok")),
}


@pytest.mark.parametrize(("request_", "message"), NOT_LISTED.values(), ids=NOT_LISTED)
def test_a_list_that_cannot_be_true_is_refused(request_: Request, message: pb.WorkspaceBillingMode) -> None:
    with pytest.raises(AnswerInvalid):
        verified.listed(message, request_, after=FIRST)


def counted() -> service_pb.SummarizeBillingModesResponse:
    """What a server says of five workspaces under the org default `byok`, supposing `disabled`."""
    return service_pb.SummarizeBillingModesResponse(
        workspaces=5,
        unrecognised_overrides=1,
        org_default=pb.BILLING_MODE_BYOK,
        counts=[
            service_pb.BillingModeCount(
                mode=pb.BILLING_MODE_PLATFORM_MANAGED, source=pb.BILLING_MODE_SOURCE_CONSTANT_FALLBACK, workspaces=1
            ),
            service_pb.BillingModeCount(
                mode=pb.BILLING_MODE_BYOK, source=pb.BILLING_MODE_SOURCE_ORG_DEFAULT, workspaces=3
            ),
            service_pb.BillingModeCount(
                mode=pb.BILLING_MODE_DISABLED, source=pb.BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE, workspaces=1
            ),
        ],
        moves=[
            service_pb.BillingModeMove(from_mode=pb.BILLING_MODE_BYOK, to_mode=pb.BILLING_MODE_DISABLED, workspaces=3)
        ],
    )


def test_a_summary_is_taken_as_the_server_counted() -> None:
    found = verified.summary(counted(), "disabled")
    assert (found.workspaces, found.unrecognised_overrides, found.org_default) == (5, 1, BillingMode.BYOK)
    assert found.counts[1] == ModeCount(BillingMode.BYOK, BillingModeSource.ORG_DEFAULT, 3)
    assert found.moves == (ModeMove(BillingMode.BYOK, BillingMode.DISABLED, 3),)
    # A default that is not usable is platform_managed.
    closing = counted()
    closing.moves[0].to_mode = pb.BILLING_MODE_PLATFORM_MANAGED
    closing.moves[0].workspaces = 4
    assert verified.summary(closing, "garbage").moves[0].to_mode is BillingMode.PLATFORM_MANAGED


Spoil = Callable[[service_pb.SummarizeBillingModesResponse], None]


def set_count(index: int, **fields: int) -> Spoil:
    return lambda answer: set_fields(answer.counts[index], fields)


def set_move(**fields: int) -> Spoil:
    return lambda answer: set_fields(answer.moves[0], fields)


def set_fields(message: Message, fields: Mapping[str, int]) -> None:
    for name, value in fields.items():
        setattr(message, name, value)


def count_zero(answer: service_pb.SummarizeBillingModesResponse) -> None:
    answer.counts[0].workspaces, answer.counts[1].workspaces = 0, 4


SPOILT: dict[str, Spoil] = {
    "another sum": lambda answer: set_fields(answer, {"workspaces": 6}),
    "no org default": lambda answer: answer.ClearField("org_default"),
    "an unknown mode": set_count(2, mode=9),
    "an unknown source": set_count(2, source=9),
    "a count of zero": count_zero,
    "an open fallback": set_count(0, mode=pb.BILLING_MODE_BYOK),
    "another inherited mode": set_count(1, mode=pb.BILLING_MODE_DISABLED),
    "a move from an unknown mode": set_move(from_mode=9),
    "a move from another mode": set_move(from_mode=pb.BILLING_MODE_PLATFORM_MANAGED),
    "a move to another mode": set_move(to_mode=pb.BILLING_MODE_PLATFORM_MANAGED),
    "a move of too many": set_move(workspaces=5),
    "a move of zero": set_move(workspaces=0),
    "a time out of range": lambda answer: answer.read_time.CopyFrom(AFTER_EVERY_TIME),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_summary_that_cannot_be_true_is_refused(spoil: Spoil) -> None:
    answer = counted()
    spoil(answer)
    with pytest.raises(AnswerInvalid):
        verified.summary(answer, "disabled")


def test_moves_that_nobody_asked_about_are_refused() -> None:
    with pytest.raises(AnswerInvalid):
        verified.summary(counted(), None)


CHANGES: dict[str, pb.BillingModeChange] = {
    "of another workspace": pb.BillingModeChange(workspace_id=SECOND),
    "of no workspace": pb.BillingModeChange(),
    "of the org default and of a workspace": pb.BillingModeChange(
        workspace_id=FIRST, kind=pb.BILLING_MODE_CHANGE_KIND_ORG_DEFAULT
    ),
    "at a time out of range": pb.BillingModeChange(workspace_id=FIRST, change_time=AFTER_EVERY_TIME),
}


@pytest.mark.parametrize("message", CHANGES.values(), ids=CHANGES)
def test_a_change_that_cannot_be_true_is_refused(message: pb.BillingModeChange) -> None:
    with pytest.raises(AnswerInvalid):
        verified.change(message, FIRST)


def test_a_change_of_all_is_a_workspaces_or_the_org_defaults() -> None:
    default = pb.BillingModeChange(kind=pb.BILLING_MODE_CHANGE_KIND_ORG_DEFAULT)
    assert verified.change(default, "").kind is ChangeKind.ORG_DEFAULT
    for asked in ("", FIRST.upper()):
        assert verified.change(pb.BillingModeChange(workspace_id=FIRST), asked).kind is ChangeKind.WORKSPACE
    for message in (pb.BillingModeChange(), pb.BillingModeChange(workspace_id=FIRST, kind=default.kind)):
        with pytest.raises(AnswerInvalid):
            verified.change(message, "")
