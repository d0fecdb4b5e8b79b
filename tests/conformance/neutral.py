"""Answers in the vectors' terms: the texts of the contract, without sentences for people."""

from typing import Any, Final

from google.protobuf.message import Message

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.wire.messages import MODE_FROM_PROTO, SOURCE_TO_PROTO, VERDICT_TO_PROTO

SOURCES: Final = {number: source.value for source, number in SOURCE_TO_PROTO.items()}
VERDICTS: Final = {number: verdict.value for verdict, number in VERDICT_TO_PROTO.items()}


def of_message(answer: Message) -> Any:
    """A response as the server sent it."""
    match answer:
        case service_pb.ResolveBillingModeResponse():
            return resolution(answer.resolution)
        case service_pb.BatchResolveBillingModesResponse():
            return [resolution(each) for each in answer.resolutions]
        case service_pb.ValidateSecretWriteResponse():
            return {
                "allowed": answer.allowed,
                "verdicts": [
                    {"secret_key": each.secret_key, "verdict": VERDICTS[each.verdict]} for each in answer.verdicts
                ],
                "resolution": resolution(answer.resolution) if answer.HasField("resolution") else None,
            }
        case service_pb.PlanProvisionEnvResponse():
            return {
                "resolution": resolution(answer.resolution),
                "strip_keys": list(answer.strip_keys),
                "set_env": dict(answer.set_env),
                "route_via_platform_proxy": answer.route_via_platform_proxy,
            }
    raise AssertionError(f"{type(answer).__name__} is not the answer of a decision")


def resolution(message: pb.BillingModeResolution) -> dict[str, Any]:
    return {
        "workspace_id": message.workspace_id,
        "mode": MODE_FROM_PROTO[message.resolved_mode].value,
        "source": SOURCES[message.source],
        "workspace_override": message.workspace_override if message.HasField("workspace_override") else None,
        "org_default": MODE_FROM_PROTO[message.org_default].value,
        "error": message.error.reason if message.HasField("error") else None,
    }
