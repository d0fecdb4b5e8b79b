"""Put the gateway's application together."""

from collections.abc import Collection
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from billing_grpc.gateway import old_route, page, rpcs
from billing_grpc.gateway.guard import Guard
from billing_grpc.gateway.local_admin import LocalAdmin
from billing_grpc.gateway.upstream import Caller, LetIn, Upstream
from billing_grpc.wire.metadata import ACTOR, AUTHORIZATION, REQUEST_ID

_READ_BY_PAGES: Final = (
    "etag",
    REQUEST_ID,
    f"trailer-{REQUEST_ID}",
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
)
_SENT_BY_PAGES: Final = (
    *(AUTHORIZATION, ACTOR, "content-type", "if-match", REQUEST_ID, "traceparent", "tracestate"),
    *("connect-protocol-version", "connect-timeout-ms", "grpc-timeout", "x-grpc-web", "x-user-agent"),
)
_PREFLIGHT_SECONDS: Final = 7200


def application(
    upstream: Upstream, local_admin: LocalAdmin | None, *, hosts: Collection[str], origins: Collection[str]
) -> ASGIApp:
    """Return the ASGI application.

    Args:
        upstream: the server.
        local_admin: lets the page in under local admin; `None` elsewhere.
        hosts: as in `Guard`.
        origins: as in `Guard`.
    """
    let_in: LetIn = _nobody if local_admin is None else local_admin.let_in

    def caller(request: Request) -> Caller:
        return Caller.of(request.headers.getlist, let_in)

    route = old_route.OldRoute(upstream, caller)
    app = Starlette(
        routes=[
            Route(old_route.PATH, route.answer, methods=["GET", "PUT"]),
            *(Mount(place, app) for place, app in rpcs.applications(upstream, let_in).items()),
            *page.routes(local_admin),
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=("GET", "PUT", "POST"),
                allow_headers=_SENT_BY_PAGES,
                expose_headers=_READ_BY_PAGES,
                max_age=_PREFLIGHT_SECONDS,
            )
        ],
        exception_handlers={HTTPException: _refused},
    )
    app.router.redirect_slashes = False
    return Guard(app, hosts=hosts, origins=origins)


def _nobody(authorization: str) -> bool:
    del authorization
    return False


async def _refused(request: Request, error: Exception) -> Response:
    del request
    if not isinstance(error, HTTPException):
        raise error
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
