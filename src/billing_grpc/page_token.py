"""Page tokens: the position of the next page of a list, as opaque text. Pure.

A token holds version, list and position. Its check sum detects a token that was cut, mistyped or invented. A token is no
secret: it gives access to nothing that the caller could not ask for without it.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from billing_grpc.errors import FieldViolation, InvalidArgument

_VERSION: Final = "1"
_CHECK_BYTES: Final = 8
_MAX_LENGTH: Final = 256
_MAX_NUMBER: Final = 2**63 - 1
_LOG_POSITION: Final = re.compile(r"(?:[1-9][0-9]{0,18})?/[0-9:,]*/[0-9:,]*")
_SNAPSHOT: Final = re.compile(r"[0-9]{1,19}:[0-9]{1,19}:(?:[0-9]{1,19}(?:,[0-9]{1,19})*)?")
_MAX_LOG_LENGTH: Final = 65_536
"""A snapshot names every transaction that was running, each with up to 20 digits."""
_WORKSPACE: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where a page of the change log begins.

    Attributes:
        before: only entries with a lower number; None for all.
        since: only entries that were not committed in this snapshot; empty for all.
        until: only entries that were committed in this snapshot; empty for all.
    """

    before: int | None = None
    since: str = ""
    until: str = ""

    def __str__(self) -> str:
        return f"{self.before or ''}/{self.since}/{self.until}"


def list_name(*filters: object) -> str:
    """Return a short text that tells a list with these filters from every other list."""
    return hashlib.sha256(repr(filters).encode()).hexdigest()[:16]


def encode(of: str, position: object) -> str:
    """Return the token of the page after `position` in the list that `list_name` named `of`."""
    payload = f"{_VERSION}|{of}|{position}".encode()
    return base64.urlsafe_b64encode(_check(payload) + payload).decode().rstrip("=")


def log_position(token: str, of: str) -> LogPosition:
    """Return the position in a token of the change log; otherwise as `workspace`."""
    before, since, until = _decode(token, of, _LOG_POSITION, _MAX_LOG_LENGTH).split("/")
    position = LogPosition(int(before) if before else None, since, until)
    if (position.before or 0) > _MAX_NUMBER or not (_is_snapshot(since) and _is_snapshot(until)):
        raise _foreign()
    return position


def workspace(token: str, of: str) -> str:
    """Return the workspace in a token.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID if this service did not make the token, or made it for another list.
    """
    return _decode(token, of, _WORKSPACE)


def _decode(token: str, of: str, form: re.Pattern[str], most: int = _MAX_LENGTH) -> str:
    try:
        if len(token) > most or not token.isascii():
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


def _is_snapshot(text: str) -> bool:
    """Return whether Postgres takes this for a snapshot: xmin, xmax, and the transactions that run in between, in order."""
    if not text:
        return True
    if not _SNAPSHOT.fullmatch(text):
        return False
    least, most, running = text.split(":")
    ids = [int(each) for each in running.split(",") if each]
    bounds = [int(least), *ids, int(most)]
    return (
        bounds[0] > 0
        and bounds == sorted(bounds)
        and len(set(ids)) == len(ids)
        and bounds[-1] <= _MAX_NUMBER
        and (not ids or ids[-1] < bounds[-1])
    )


def foreign_database() -> InvalidArgument:
    """Return the error for a token whose transactions the database does not know."""
    return _invalid("is of another database, or of this one before it was restored; start again without it")


def _foreign() -> InvalidArgument:
    return _invalid("is not one that this service made; start again without it")


def _invalid(problem: str) -> InvalidArgument:
    return InvalidArgument("PAGE_TOKEN_INVALID", FieldViolation("page_token", problem))
