"""Servers to compare with, as a user would write them in an afternoon: python -m benchmarks.peers NAME.

`empty` answers with an empty message: what a call of grpc.aio costs by itself. `naive` and `fastapi` read the same row
through `AsyncConnectionPool` and apply the rule, without authentication, log, metrics or limits. `collector` takes the
service's traces. The database's address is in `DATABASE_URL`, the organisation's default in `ORG_DEFAULT`. Each prints
`listening on HOST:PORT` as the service does.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import uvicorn
import uvloop
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb

_SERVICE: Final = "molecule.billing.v1.BillingModeService"
_CONNECTIONS: Final = 8
_QUERY: Final = "SELECT llm_billing_mode FROM workspaces WHERE id = %s"
_MODES: Final = {
    "byok": pb.BILLING_MODE_BYOK,
    "disabled": pb.BILLING_MODE_DISABLED,
    "platform_managed": pb.BILLING_MODE_PLATFORM_MANAGED,
}


async def _answer_nothing(_: service_pb.ResolveBillingModeRequest, __: Any) -> service_pb.ResolveBillingModeResponse:
    return service_pb.ResolveBillingModeResponse()


class _Naive:
    def __init__(self, pool: AsyncConnectionPool, org_default: str) -> None:
        self._pool, self._org_default = pool, org_default

    async def resolve(
        self, request: service_pb.ResolveBillingModeRequest, _: Any
    ) -> service_pb.ResolveBillingModeResponse:
        override = await _override(self._pool, request.workspace_id)
        return service_pb.ResolveBillingModeResponse(
            resolution=pb.BillingModeResolution(
                workspace_id=request.workspace_id,
                resolved_mode=_MODES[override or self._org_default],
                source=pb.BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE if override else pb.BILLING_MODE_SOURCE_ORG_DEFAULT,
                workspace_override=override,
                org_default=_MODES[self._org_default],
                reason="the workspace's own mode" if override else "the organisation's default",
            )
        )


async def _override(pool: AsyncConnectionPool, workspace_id: str) -> str | None:
    async with pool.connection() as connection:
        row = await (await connection.execute(_QUERY, [workspace_id])).fetchone()
    return None if row is None else row[0]


def _pool() -> AsyncConnectionPool:
    return AsyncConnectionPool(
        os.environ["DATABASE_URL"],
        min_size=_CONNECTIONS,
        max_size=_CONNECTIONS,
        kwargs={"autocommit": True},
        open=False,
    )


def _listens(port: int) -> None:
    sys.stdout.write(f"listening on 127.0.0.1:{port}\n")
    sys.stdout.flush()


async def _serve(resolve: Callable[..., Awaitable[service_pb.ResolveBillingModeResponse]]) -> None:
    handler = grpc.unary_unary_rpc_method_handler(
        resolve,
        request_deserializer=service_pb.ResolveBillingModeRequest.FromString,
        response_serializer=service_pb.ResolveBillingModeResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"ResolveBillingMode": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _listens(port)
    await server.wait_for_termination()


async def empty() -> None:
    """Serve the empty call."""
    await _serve(_answer_nothing)


async def naive() -> None:
    """Serve the naive version of the service."""
    async with _pool() as pool:
        await pool.wait()
        await _serve(_Naive(pool, os.environ["ORG_DEFAULT"]).resolve)


async def fastapi() -> None:
    """Serve the same row over HTTP, with FastAPI on uvicorn."""
    app, org_default = FastAPI(), os.environ["ORG_DEFAULT"]
    async with _pool() as pool:

        async def resolve(workspace_id: str) -> dict[str, str | None]:
            override = await _override(pool, workspace_id)
            return {
                "workspace_id": workspace_id,
                "resolved_mode": override or org_default,
                "workspace_override": override,
                "org_default": org_default,
                "source": "workspace_override" if override else "org_default",
            }

        app.get("/admin/workspaces/{workspace_id}/llm-billing-mode")(resolve)
        await pool.wait()
        await _serve_http(app)


async def collector() -> None:
    """Take traces and forget them."""
    app = FastAPI()

    async def take() -> None:
        pass

    app.post("/v1/traces")(take)
    await _serve_http(app)


async def _serve_http(app: FastAPI) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _listens(listener.getsockname()[1])
        await uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning")).serve([listener])


SERVERS: Final = {"empty": empty, "naive": naive, "fastapi": fastapi, "collector": collector}


if __name__ == "__main__":
    loop = uvloop if sys.argv[2:] == ["uvloop"] else asyncio
    loop.run(SERVERS[sys.argv[1]]())
