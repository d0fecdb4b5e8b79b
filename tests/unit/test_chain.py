"""The order around a call that no client can see for certain: gRPC's context is made up here."""

from typing import Any, Final

import grpc
import pytest

from billing_grpc.errors import Overloaded, WorkspaceNotFound
from billing_grpc.server.auth import roles
from billing_grpc.server.auth.principals import Principals
from billing_grpc.server.auth.principals_file import FixedPrincipals
from billing_grpc.server.calls.chain import Chain, Methods
from billing_grpc.server.settings.limits import Limits
from billing_grpc.server.telemetry.metrics import Metrics

METHOD: Final = next(iter(roles.MAY_CALL))


class Rpc:
    """A caller on this machine that calls again as soon as its status is sent."""

    def __init__(self, again: Any = None) -> None:
        self._again = again

    def invocation_metadata(self) -> Any:
        return ()

    def set_trailing_metadata(self, metadata: Any) -> None:
        del metadata

    def auth_context(self) -> Any:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def code(self) -> Any:
        return grpc.StatusCode.NOT_FOUND

    async def read(self) -> bytes:
        return b""

    async def abort_with_status(self, status: Any) -> None:
        if self._again is not None:
            await self._again(status)
        raise grpc.aio.AbortError


async def test_a_place_is_free_before_its_caller_can_know_that_the_call_has_ended() -> None:
    async def fails(*_: object) -> bytes:
        raise WorkspaceNotFound("x")

    methods, codes = Methods(), []
    service, _, name = METHOD[1:].partition("/")
    handlers: Any = {name: grpc.unary_unary_rpc_method_handler(fails)}
    methods.add_registered_method_handlers(service, handlers)
    principals = FixedPrincipals(Principals({}, {}, {}))
    chain = Chain(methods, principals, local_admin=True, limits=Limits(max_concurrent_calls=1), metrics=Metrics())

    class Details(grpc.HandlerCallDetails):
        method = METHOD
        invocation_metadata = ()

    handler: Any = chain.service(Details())

    async def again(status: Any) -> None:
        codes.append(status.code)

        async def note(status: Any) -> None:
            codes.append(status.code)

        with pytest.raises(grpc.aio.AbortError):
            await handler.stream_unary(None, Rpc(note))

    with pytest.raises(grpc.aio.AbortError):
        await handler.stream_unary(None, Rpc(again))
    assert codes == [grpc.StatusCode.NOT_FOUND] * 2, Overloaded.reason
