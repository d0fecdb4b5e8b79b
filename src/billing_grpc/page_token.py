"""Page tokens: the position of the next page of a list, as opaque text. Pure.

A token holds version, filter and position. Its check sum detects a token that was cut, mistyped or invented. A token is no
secret: it gives access to nothing that the caller could not ask for without it.
"""

import base64
import binascii
import hashlib
from typing import Final

from billing_grpc.errors import FieldViolation, InvalidArgument

_VERSION: Final = "1"
_CHECK_BYTES: Final = 8
_MAX_LENGTH: Final = 256
_MAX_POSITION: Final = 2**63 - 1


def encode(workspace_id: str, position: int) -> str:
    """Return the token of the page after `position`, for one workspace, or for all if the id is empty."""
    payload = f"{_VERSION}|{workspace_id}|{position}".encode()
    return base64.urlsafe_b64encode(_check(payload) + payload).decode().rstrip("=")


def decode(token: str, workspace_id: str) -> int:
    """Return the position in a token.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID if this service did not make the token, or made it for another filter.
    """
    try:
        if len(token) > _MAX_LENGTH or not token.isascii():
            raise _invalid("is not one that this service made; start again without it")
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        payload = raw[_CHECK_BYTES:]
        version, filtered_by, position = payload.decode().split("|")
        number = int(position)
    except (binascii.Error, ValueError):
        raise _invalid("is not one that this service made; start again without it") from None
    if _check(payload) != raw[:_CHECK_BYTES] or version != _VERSION or not 0 <= number <= _MAX_POSITION:
        raise _invalid("is not one that this service made; start again without it")
    if encode(filtered_by, number) != token:
        # Another encoding of a valid token.
        raise _invalid("is not one that this service made; start again without it")
    if filtered_by != workspace_id:
        raise _invalid("belongs to a list of something else; send the workspace_id it was made for")
    return number


def _check(payload: bytes) -> bytes:
    return hashlib.sha256(b"billing_grpc page token" + payload).digest()[:_CHECK_BYTES]


def _invalid(problem: str) -> InvalidArgument:
    return InvalidArgument("PAGE_TOKEN_INVALID", FieldViolation("page_token", problem))
