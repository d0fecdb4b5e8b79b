"""The conformance server over real gRPC: the real service passes every case about it, and every fault really happens."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.addresses import TcpAddress, UnixAddress
from billing_grpc.conformance.cases import BEHAVIOURS, DECISIONS, METADATA_KEY, Case, load, matches
from billing_grpc.conformance.server import serving
from tests.conformance import neutral

PATIENCE: Final = 20.0
CASES: Final = {case.id: case for case in load()}
PATH: Final = "/molecule.billing.v1.BillingModeService/"


def of(*behaviours: str) -> list[Case]:
    return [case for case in CASES.values() if case.behaviour in behaviours]


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    async with serving(TcpAddress("127.0.0.1", 0)) as target, grpc.aio.insecure_channel(target) as made:
        yield made


def message(case: Case) -> Any:
    return json_format.ParseDict(dict(case.request), getattr(service_pb, f"{case.method}Request")())


async def raw(channel: grpc.aio.Channel, case: Case, *, deadline: float = PATIENCE, named: str | None = None) -> bytes:
    """The bytes of the answer, before anything reads them."""
    call: Any = channel.unary_unary(PATH + case.method, response_deserializer=lambda wire: wire)
    answer: bytes = await call(
        message(case).SerializeToString(), timeout=deadline, metadata=((METADATA_KEY, named or case.id),)
    )
    return answer


async def status(channel: grpc.aio.Channel, case: Case, **options: Any) -> tuple[str, str | None]:
    """The code that a call fails with, and the reason among its details."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await raw(channel, case, **options)
    error: Any = failed.value
    info, rich = error_details_pb2.ErrorInfo(), rpc_status.from_call(error)
    if rich is None or not rich.details:
        return error.code().name, None
    assert rich.details[0].Unpack(info)
    assert code_pb2.Code.Name(rich.code) == error.code().name
    return error.code().name, info.reason


async def is_answered(channel: grpc.aio.Channel, case: Case) -> bool:
    call: Any = channel.unary_unary(PATH + case.method)
    metadata = ((METADATA_KEY, case.id),)
    code = await call(message(case).SerializeToString(), timeout=PATIENCE, metadata=metadata).code()
    return bool(code is grpc.StatusCode.OK)


async def test_the_real_service_answers_as_each_vector_says(
    channel: grpc.aio.Channel, subtests: pytest.Subtests
) -> None:
    for case in of("state"):
        with subtests.test(case.id):
            kind, expected = next(iter((case.expect_server or {"answer": case.expect}).items()))
            if kind == "status":
                assert await status(channel, case) == (expected["code"], expected["reason"])
                continue
            answer = getattr(service_pb, f"{case.method}Response").FromString(await raw(channel, case))
            assert matches(expected, neutral.of_message(answer)), neutral.of_message(answer)


async def test_a_made_up_answer_is_sent_as_it_is(channel: grpc.aio.Channel, subtests: pytest.Subtests) -> None:
    for case in of("answer", "bytes"):
        with subtests.test(case.id):
            sent = await raw(channel, case)
            if case.behaviour == "bytes":
                assert sent.hex() == case.detail
                continue
            answer_class = getattr(service_pb, f"{case.method}Response")
            assert answer_class.FromString(sent) == json_format.ParseDict(case.detail, answer_class())


async def test_a_made_up_status_is_sent_as_it_is(channel: grpc.aio.Channel, subtests: pytest.Subtests) -> None:
    for case in of("status"):
        with subtests.test(case.id):
            assert await status(channel, case) == (case.detail["code"], case.detail.get("reason"))


async def test_a_hanging_call_is_not_answered(channel: grpc.aio.Channel) -> None:
    assert await status(channel, of("hang")[0], deadline=0.5) == ("DEADLINE_EXCEEDED", None)


async def test_a_reset_ends_the_connection_and_the_next_call_gets_another(channel: grpc.aio.Channel) -> None:
    hanging = asyncio.ensure_future(status(channel, of("hang")[0]))
    await raw(channel, CASES["resolution/set-byok-org-default-unset"])
    assert await status(channel, of("reset")[0]) == ("UNAVAILABLE", None)
    assert await hanging == ("UNAVAILABLE", None)
    # A call may still be put on the connection that is gone, until gRPC has seen that it is.
    async with asyncio.timeout(PATIENCE):
        while not await is_answered(channel, CASES["resolution/set-byok-org-default-unset"]):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("named", ["", "closed/nobody", "closed/batch-reset"], ids=["none", "unknown", "of another"])
async def test_a_call_that_names_no_case_of_its_method_is_told_how(channel: grpc.aio.Channel, named: str) -> None:
    case = CASES["resolution/set-byok-org-default-unset"]
    with pytest.raises(grpc.aio.AioRpcError, match=METADATA_KEY) as failed:
        await raw(channel, case, named=named or "-")
    error: Any = failed.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_unix_socket_resets_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    address = UnixAddress(str(tmp_path_factory.mktemp("c") / "s"))
    async with serving(address) as target, grpc.aio.insecure_channel(target) as channel:
        assert await status(channel, of("reset")[0]) == ("UNAVAILABLE", None)


def test_every_decision_has_cases_of_every_behaviour() -> None:
    found = {(case.method, case.behaviour) for case in CASES.values()}
    for behaviour in BEHAVIOURS:
        assert {method for method, each in found if each == behaviour} == set(DECISIONS), behaviour
