"""Refuse a request before anything reads it: by its host, its origin, its size and its pace."""

import asyncio
import re
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = (4 << 20) + 5
"""The largest body: the server's limit of a message, in the envelope of gRPC-Web."""
_BODY_SECONDS: Final = 5.0
"""Seconds in which a whole body must arrive."""
_ORIGIN: Final = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_TWO_LENGTHS: Final = frozenset({"content-length", "transfer-encoding"})
_ALWAYS: Final = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def is_origin(text: str) -> bool:
    """Return whether a browser could send this as `Origin`; `*` and `null` are not accepted."""
    return _ORIGIN.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """Return whether this is a host, with or without a port, in lower case."""
    return _HOST.fullmatch(text) is not None


class Guard:
    """An ASGI application around another one. A refused request executes nothing.

    A request needs one of `hosts` as its `Host`. Otherwise a foreign name that resolves to this address (DNS rebinding)
    would give a foreign page this origin. If a request has an `Origin`, it must be this one or one of `origins`.

    Args:
        app: the application.
        hosts: each with a port, or without one to accept any; lower case.
        origins: the origins of other sites whose pages may call.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], origins: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)

        async def send_hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    given.setdefault(name, value)
            await send(message)

        refusal = self._refusal(headers)
        if refusal is None:
            await self._app(scope, _timely(receive), send_hardened)
        else:
            status, text = refusal
            # The end of a body with two lengths is in doubt: what follows may be another caller's.
            ends = {"connection": "close"} if _TWO_LENGTHS.issubset(headers) else None
            await JSONResponse({"error": text}, status, ends)(scope, receive, send_hardened)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        if any(not name.isascii() or not value.isascii() for name, value in headers.raw):
            return 400, "a header holds a character beyond ASCII"
        if _TWO_LENGTHS.issubset(headers):
            return 400, "the request has both Content-Length and Transfer-Encoding: send one"
        hosts, origins = [each.lower() for each in headers.getlist("host")], headers.getlist("origin")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 421, "this host is not served here; an operator adds it with --host"
        own = {f"http://{hosts[0]}", f"https://{hosts[0]}"}
        if len(origins) > 1 or not {*origins} <= own | self._origins:
            return 403, "pages of this origin may not call; an operator allows it with --origin"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return 413, f"the body is larger than {MAX_BODY_BYTES} bytes"
        return None

    def _is_ours(self, host: str) -> bool:
        parts = _HOST.fullmatch(host)
        return parts is not None and (host in self._hosts or parts["name"] in self._hosts)


def _timely(receive: Receive) -> Receive:
    """Return a `receive` that ends a request whose body does not arrive in time."""
    deadline = asyncio.get_running_loop().time() + _BODY_SECONDS
    arrived = False

    async def timely() -> Message:
        nonlocal arrived
        if arrived:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        arrived = not message.get("more_body", False)
        return message

    return timely
