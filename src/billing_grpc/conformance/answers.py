"""Answer a call that names a case: with the real service's answer, a made-up one, or none at all."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.conformance.cases import DECISIONS, METADATA_KEY, Case
from billing_grpc.conformance.states import service_in
from billing_grpc.server.call import RequestContext, Rpc
from billing_grpc.server.calls.chain import Methods
from billing_grpc.wire.statuses import ERROR_DOMAIN

Reset: TypeAlias = Callable[[str], None]

SERVICE: Final = service_pb.DESCRIPTOR.services_by_name["BillingModeService"]
_USAGE: Final = (
    f"this server is for tests of clients: name a case in the call's metadata, as in {METADATA_KEY}:"
    " closed/resolve-unreachable, and call the method of that case"
)


def methods(cases: Mapping[str, Case], reset: Reset) -> Methods:
    """Return the methods of the four decisions; each call is answered as its case says.

    Args:
        cases: the cases by id.
        reset: resets the connection of the caller with this peer name during a call.
    """
    decisions = Methods()
    decisions.add_registered_method_handlers(
        SERVICE.full_name, {method: _method(method, cases, reset) for method in DECISIONS}
    )
    return decisions


def _method(method: str, cases: Mapping[str, Case], reset: Reset) -> "grpc.RpcMethodHandler[Any, Any]":
    descriptor = SERVICE.methods_by_name[method]
    request_class = getattr(service_pb, descriptor.input_type.name)
    response_class = getattr(service_pb, descriptor.output_type.name)

    async def answer(request: Message, call: RequestContext) -> Message | bytes:
        named = dict(call.metadata).get(METADATA_KEY, "")
        case = cases.get(str(named))
        # A client may need a second decision for the first; only the real service can answer that too.
        if case is None or (case.method != method and case.behaviour != "state"):
            await call.rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, _USAGE)
        match case.behaviour:
            case "state":
                served: Message = await getattr(service_in(case.detail), method)(request, call)
                return served
            case "answer":
                made_up: Message = json_format.ParseDict(case.detail, response_class())
                return made_up
            case "bytes":
                return bytes.fromhex(case.detail)
            case "status":
                await _refuse(call.rpc, case.detail)
            case "reset":
                reset(call.rpc.peer())
        # Wait until gRPC cancels the call: for "hang", and until a reset connection is noticed.
        await asyncio.Event().wait()
        raise AssertionError("this event is never set")

    return grpc.unary_unary_rpc_method_handler(answer, request_class.FromString, _on_the_wire)


def _on_the_wire(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


async def _refuse(rpc: "Rpc", detail: Mapping[str, str]) -> NoReturn:
    status = status_pb2.Status(code=code_pb2.Code.Value(detail["code"]), message=detail.get("message", ""))
    if "reason" in detail:
        packed = AnyMessage()
        packed.Pack(error_details_pb2.ErrorInfo(reason=detail["reason"], domain=ERROR_DOMAIN))
        status.details.append(packed)
    await rpc.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status returned")
