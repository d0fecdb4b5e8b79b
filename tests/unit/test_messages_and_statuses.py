"""The contract's numbers, and errors as rich statuses."""

import pickle
from typing import Any, TypeVar

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from billing_grpc import errors, validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.model import BillingMode, BillingModeSource, ResolutionError, SecretVerdict, StoredOverride
from billing_grpc.resolver import resolve
from billing_grpc.wire import messages, statuses


def leaves(root: type[errors.RequestError]) -> list[type[errors.RequestError]]:
    return [leaf for child in root.__subclasses__() for leaf in (leaves(child) or [child])]


def example(kind: type[errors.RequestError]) -> Any:
    if issubclass(kind, errors.InvalidArgument):
        return kind("MODE_INVALID", errors.FieldViolation("mode", "must be one of the three"))
    with_own_text = (
        *(errors.StorageError, errors.WriteUndone),
        *(errors.Unauthenticated, errors.PermissionDenied, errors.Overloaded),
    )
    make: Any = kind
    return make() if issubclass(kind, with_own_text) else make("a message")


Message = TypeVar("Message", bound=Any)


def detail(status: status_pb2.Status, kind: type[Message]) -> Message | None:
    for packed in status.details:
        message: Message = kind()
        if packed.Unpack(message):
            return message
    return None


EXPECTED_CODES = {
    errors.InvalidArgument: code_pb2.INVALID_ARGUMENT,
    errors.WorkspaceNotFound: code_pb2.NOT_FOUND,
    errors.EtagStale: code_pb2.ABORTED,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.PermissionDenied: code_pb2.PERMISSION_DENIED,
    errors.Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    errors.DatabaseUnreachable: code_pb2.UNAVAILABLE,
    errors.DatabaseTimeout: code_pb2.UNAVAILABLE,
    errors.DatabaseStale: code_pb2.UNAVAILABLE,
    errors.SchemaNotReady: code_pb2.UNAVAILABLE,
    errors.DatabaseDenied: code_pb2.UNAVAILABLE,
    errors.ValueUnreadable: code_pb2.UNAVAILABLE,
    errors.WriteNotApplied: code_pb2.FAILED_PRECONDITION,
    errors.ChangeNotRecorded: code_pb2.FAILED_PRECONDITION,
}


FIRST = "7f1fc6a0-0000-4000-8000-000000000001"
OTHERS = tuple(f"7f1fc6a0-0000-4000-8000-00000000000{digit}" for digit in "23456789")


@given(
    overrides=st.lists(
        st.builds(StoredOverride, st.none() | st.sampled_from(["byok", "", FIRST, OTHERS[0]]) | st.text(max_size=256))
        | st.just(StoredOverride(None, exists=False))
        | st.just(ResolutionError("VALUE_UNREADABLE", "a message")),
        max_size=len(OTHERS),
    ),
    org_default=st.sampled_from([None, "byok", "garbage"]),
)
def test_the_bytes_around_an_id_answer_for_any_id_and_join_to_a_batch(
    overrides: list[StoredOverride | ResolutionError], org_default: str | None
) -> None:
    joined, expected = b"", service_pb.BatchResolveBillingModesResponse()
    for workspace_id, override in zip(OTHERS, overrides, strict=False):
        before, after = messages.bytes_around_id(resolve(FIRST, override, org_default))
        joined += before + workspace_id.encode() + after
        expected.resolutions.append(messages.resolution_to_proto(resolve(workspace_id, override, org_default)))

    assert service_pb.BatchResolveBillingModesResponse.FromString(joined) == expected


def test_the_table_of_codes_lists_every_error_that_can_reach_a_client() -> None:
    assert set(leaves(errors.RequestError)) == set(EXPECTED_CODES)


@pytest.mark.parametrize(("kind", "code"), EXPECTED_CODES.items(), ids=lambda each: getattr(each, "__name__", None))
def test_every_error_has_a_status_and_one_error_info(kind: type[errors.RequestError], code: int) -> None:
    error = example(kind)
    status = statuses.error_to_status(error)

    assert (status.code, status.message) == (code, error.message)
    infos = [packed for packed in status.details if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    info = detail(status, error_details_pb2.ErrorInfo)
    assert info is not None
    assert (info.domain, info.reason) == ("billing.molecule", error.reason)
    assert info.reason.isupper()


@pytest.mark.parametrize("kind", EXPECTED_CODES, ids=lambda each: each.__name__)
def test_only_an_unreachable_or_late_database_is_worth_a_retry(kind: type[errors.RequestError]) -> None:
    retry = detail(statuses.error_to_status(example(kind)), error_details_pb2.RetryInfo)

    assert (retry is not None) == (kind in {errors.DatabaseUnreachable, errors.DatabaseTimeout})


def test_bad_input_names_its_fields() -> None:
    violation = errors.FieldViolation("mode", "must be one of the three")
    bad = detail(
        statuses.error_to_status(errors.InvalidArgument("MODE_INVALID", violation)), error_details_pb2.BadRequest
    )

    assert bad is not None
    assert [(each.field, each.description, each.reason) for each in bad.field_violations] == [
        ("mode", "must be one of the three", "MODE_INVALID")
    ]


def test_the_closed_resolution_travels_with_an_error() -> None:
    closed = resolve("w", ResolutionError("DATABASE_TIMEOUT", "late"), "byok")
    status = statuses.error_to_status(errors.DatabaseTimeout(attachments=(closed,)))

    assert detail(status, pb.BillingModeResolution) == messages.resolution_to_proto(closed)


TASKS_ERRORS = (
    *map(example, EXPECTED_CODES),
    errors.DatabaseTimeout(attachments=(resolve("w", ResolutionError("DATABASE_TIMEOUT", "late"), "byok"),)),
    errors.ClientMisused("a message"),
    errors.SettingsError(["one", "two"]),
)


@pytest.mark.parametrize("raised", TASKS_ERRORS, ids=lambda each: type(each).__name__)
def test_an_error_crosses_from_one_process_to_another(raised: errors.BillingError) -> None:
    raised.add_note("request id 1")
    got = pickle.loads(pickle.dumps(raised))  # noqa: S301 - as `multiprocessing` and `concurrent.futures` do

    assert (type(got), str(got), vars(got)) == (type(raised), str(raised), vars(raised))


@pytest.mark.parametrize("bad", ["\U0001f600" * 1000, "x y", "\x00" * 300])
def test_the_largest_list_of_violations_stays_under_4_kb_and_names_all_twenty(bad: str) -> None:
    for check, limit in ((validation.batch_ids, 1000), (validation.secret_names, 256)):
        with pytest.raises(errors.InvalidArgument) as refused:
            check([f"{bad} "] * limit)
        status = statuses.error_to_status(refused.value)
        details = detail(status, error_details_pb2.BadRequest)
        assert status.ByteSize() < 4096
        assert details is not None
        assert len(details.field_violations) == 20


def test_even_absurdly_long_violations_are_cut_to_4_kb() -> None:
    many = [errors.FieldViolation(f"f[{index}]", "x" * 1000) for index in range(20)]

    assert statuses.error_to_status(errors.InvalidArgument("MODE_INVALID", *many)).ByteSize() < 4096


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix", "values"),
    [
        (messages.MODE_TO_PROTO, pb.BillingMode, "BILLING_MODE_", BillingMode),
        (messages.SOURCE_TO_PROTO, pb.BillingModeSource, "BILLING_MODE_SOURCE_", BillingModeSource),
        (messages.VERDICT_TO_PROTO, pb.SecretVerdict, "SECRET_VERDICT_", SecretVerdict),
    ],
    ids=["mode", "source", "verdict"],
)
def test_every_value_has_its_number_and_every_number_but_zero_its_value(
    ours: dict[Any, int], theirs: Any, prefix: str, values: Any
) -> None:
    assert set(ours) == set(values)
    assert {f"{prefix}{value.value.upper()}": number for value, number in ours.items()} == {
        name: number for name, number in theirs.items() if number != 0
    }


@pytest.mark.parametrize("override", [None, "", "byok", "corrupt"])
def test_an_override_is_present_exactly_when_there_is_stored_text(override: str | None) -> None:
    message = messages.resolution_to_proto(resolve("w", StoredOverride(override), None))

    assert message.HasField("workspace_override") == (override is not None)
    assert message.workspace_override == (override or "")
    assert not message.HasField("error")


def test_a_change_must_be_explicit() -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        messages.change_from_proto(service_pb.SetWorkspaceBillingModeRequest(reason="why"))

    assert refused.value.reason == "CHANGE_REQUIRED"


@pytest.mark.parametrize("number", [0, 4, 99, -1])
def test_a_mode_that_is_none_of_the_three_is_refused_and_the_three_are_named(number: int) -> None:
    fields: dict[str, Any] = {"mode": number}  # an open enum takes any number over the wire, whatever its type says
    request = service_pb.SetWorkspaceBillingModeRequest(**fields)

    with pytest.raises(errors.InvalidArgument) as refused:
        messages.change_from_proto(request)

    assert refused.value.reason == "MODE_INVALID"
    for name in ("BILLING_MODE_PLATFORM_MANAGED", "BILLING_MODE_BYOK", "BILLING_MODE_DISABLED", "inherit"):
        assert name in refused.value.message


def test_each_explicit_change_is_understood() -> None:
    request = service_pb.SetWorkspaceBillingModeRequest

    assert messages.change_from_proto(request(inherit=pb.Inherit())) is None
    for mode, number in messages.MODE_TO_PROTO.items():
        assert messages.change_from_proto(request(mode=number)) is mode
