"""Serve the page, and let it in under local admin."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from billing_grpc.gateway.local_admin import LocalAdmin

_MAX_SECRET_BYTES: Final = 1024


def routes(local_admin: LocalAdmin | None) -> list[Route]:
    """Return the routes of the page; with `local_admin` also the one that exchanges its secret for a token."""
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    headers = {
        "content-security-policy": policy(html),
        "cross-origin-opener-policy": "same-origin",
        "x-frame-options": "DENY",
    }

    async def page(request: Request) -> Response:
        del request
        return HTMLResponse(html, headers=headers)

    found = [Route("/", page)]
    if local_admin is not None:
        found.append(Route("/session", _exchange(local_admin), methods=["POST"]))
    return found


def policy(html: str) -> str:
    """Return the Content-Security-Policy of a page: its own script and style, this origin, and nothing else."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_digests(html, 'script')}",
            f"style-src {_digests(html, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            # No text can become markup or code, whatever a workspace is called.
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _digests(html: str, element: str) -> str:
    texts = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)


def _exchange(local_admin: LocalAdmin) -> Callable[[Request], object]:
    async def exchange(request: Request) -> Response:
        try:
            secret = json.loads(await _short(request)).get("secret")
        except (ValueError, AttributeError, RecursionError, ClientDisconnect):
            secret = None
        token = local_admin.exchange(secret) if isinstance(secret, str) else None
        if token is None:
            return JSONResponse({"error": "this address was used already: open the newest one that was printed"}, 403)
        return JSONResponse({"token": token})

    return exchange


async def _short(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_SECRET_BYTES:
            raise ValueError
    return bytes(body)
