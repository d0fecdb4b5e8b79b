"""What a call that the gateway makes tells the server: the caller's deadline, and no more metadata than is the caller's."""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import pytest

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client.channel import Dialer
from billing_grpc.gateway.upstream import Caller, Upstream, path

METHOD: Final = service_pb.DESCRIPTOR.services_by_name["BillingModeService"].methods_by_name["ResolveBillingMode"]
POLICY_SECONDS: Final = 5.0


class Echo(grpc.GenericRpcHandler):
    """Answers with the time that the call has left and with the metadata that it brought."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        assert handler_call_details.method == path(METHOD)

        async def answer(
            request: service_pb.ResolveBillingModeRequest, context: grpc.aio.ServicerContext[object, object]
        ) -> service_pb.ResolveBillingModeResponse:
            del request
            response = service_pb.ResolveBillingModeResponse()
            response.resolution.reason = str(context.time_remaining())
            response.resolution.workspace_id = json.dumps(
                sorted((key, value) for key, value in context.invocation_metadata() or ())
            )
            return response

        return grpc.unary_unary_rpc_method_handler(
            answer,
            service_pb.ResolveBillingModeRequest.FromString,
            service_pb.ResolveBillingModeResponse.SerializeToString,
        )


@pytest.fixture
async def address() -> AsyncIterator[str]:
    server = grpc.aio.server(handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


def headers(**given: list[str]) -> Caller:
    return Caller.of(lambda key: given.get(key.replace("-", "_"), []), lambda token: token == "Bearer page")


# id: of the gateway's options, of the caller, what the call may take
LIMITS: Final = {
    "neither": (None, None, POLICY_SECONDS),
    "the gateway's": (2.0, None, 2.0),
    "the caller's": (2.0, 0.7, 0.7),
    "a longer one of the caller": (2.0, 9.0, 9.0),
}


@pytest.mark.parametrize(("own", "callers", "most"), LIMITS.values(), ids=LIMITS)
async def test_the_server_gets_the_deadline(
    address: str, own: float | None, callers: float | None, most: float
) -> None:
    upstream = Upstream(Dialer(address, token=None, tls=None), own)
    request = service_pb.ResolveBillingModeRequest()
    answer, _ = await upstream.call(METHOD, request, service_pb.ResolveBillingModeResponse, headers(), callers)
    await upstream.close()
    # gRPC sends a deadline in steps, rounded up.
    assert most / 2 < float(answer.resolution.reason) < 1.02 * most


CALLERS: Final[dict[str, tuple[dict[str, list[str]], list[tuple[str, str]]]]] = {
    "nothing": ({}, [("authorization", "none")]),
    "a token": ({"authorization": ["Bearer x"]}, [("authorization", "Bearer x")]),
    "two tokens": (
        {"authorization": ["Bearer x", "Bearer y"]},
        [("authorization", "Bearer x"), ("authorization", "Bearer y")],
    ),
    "a token that cannot be sent": ({"authorization": ["Bearer \t"]}, [("authorization", "none")]),
    "the page that was let in": ({"authorization": ["Bearer page"]}, []),
    "that page, twice": ({"authorization": ["Bearer page"] * 2}, [("authorization", "Bearer page")] * 2),
    "more": (
        {
            "x_request_id": ["a"],
            "x_billing_actor": ["b", "c"],
            "traceparent": ["d"],
            "cookie": ["e"],
            "x_forwarded_for": ["f"],
        },
        [
            ("authorization", "none"),
            ("traceparent", "d"),
            ("x-billing-actor", "b"),
            ("x-billing-actor", "c"),
            ("x-request-id", "a"),
        ],
    ),
}


@pytest.mark.parametrize(("given", "sent"), CALLERS.values(), ids=CALLERS)
async def test_the_server_gets_what_is_the_callers_and_nothing_else(
    address: str, given: dict[str, list[str]], sent: list[tuple[str, str]]
) -> None:
    upstream = Upstream(Dialer(address, token=None, tls=None))
    request = service_pb.ResolveBillingModeRequest()
    answer, _ = await upstream.call(METHOD, request, service_pb.ResolveBillingModeResponse, headers(**given))
    await upstream.close()
    received = [(key, value) for key, value in json.loads(answer.resolution.workspace_id) if key != "user-agent"]
    assert received == sent
