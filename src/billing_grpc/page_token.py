"""Page tokens: the position of the next page of a list, as opaque text. Pure.

A token holds version, list and position. Its check sum detects a token that was cut, mistyped or invented. A token is no
secret: it gives access to nothing that the caller could not ask for without it.
"""

import base64
import binascii
import hashlib
import re
from typing import Final

from billing_grpc.errors import FieldViolation, InvalidArgument

_VERSION: Final = "1"
_CHECK_BYTES: Final = 8
_MAX_LENGTH: Final = 256
_MAX_NUMBER: Final = 2**63 - 1
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_WORKSPACE: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def list_name(*filters: object) -> str:
    """Return a short text that tells a list with these filters from every other list."""
    return hashlib.sha256(repr(filters).encode()).hexdigest()[:16]


def encode(of: str, position: object) -> str:
    """Return the token of the page after `position`, a number or an id, in the list that `list_name` named `of`."""
    payload = f"{_VERSION}|{of}|{position}".encode()
    return base64.urlsafe_b64encode(_check(payload) + payload).decode().rstrip("=")


def number(token: str, of: str) -> int:
    """Return the number in a token.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID if this service did not make the token, or made it for another list.
    """
    position = int(_decode(token, of, _NUMBER))
    if position > _MAX_NUMBER:
        raise _foreign()
    return position


def workspace(token: str, of: str) -> str:
    """Return the workspace in a token; otherwise as `number`."""
    return _decode(token, of, _WORKSPACE)


def _decode(token: str, of: str, form: re.Pattern[str]) -> str:
    try:
        if len(token) > _MAX_LENGTH or not token.isascii():
            raise _foreign()
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        payload = raw[_CHECK_BYTES:]
        version, made_for, position = payload.decode().split("|")
    except (binascii.Error, ValueError):
        raise _foreign() from None
    if _check(payload) != raw[:_CHECK_BYTES] or version != _VERSION or encode(made_for, position) != token:
        raise _foreign()  # the last: another encoding of a valid token
    if made_for != of:
        raise _invalid("belongs to another list: send the other fields as they were in the request that it came from")
    if not form.fullmatch(position):
        raise _foreign()
    return position


def _check(payload: bytes) -> bytes:
    return hashlib.sha256(b"billing_grpc page token" + payload).digest()[:_CHECK_BYTES]


def _foreign() -> InvalidArgument:
    return _invalid("is not one that this service made; start again without it")


def _invalid(problem: str) -> InvalidArgument:
    return InvalidArgument("PAGE_TOKEN_INVALID", FieldViolation("page_token", problem))
