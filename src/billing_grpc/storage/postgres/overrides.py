"""Read the overrides of workspaces for decisions: check the answer against the question, and decode it."""

import re
import struct
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import structlog

from billing_grpc.errors import ValueUnreadable
from billing_grpc.model import BillingMode, ResolutionError, StoredOverride
from billing_grpc.storage.postgres.connection import Connection
from billing_grpc.storage.postgres.reading import DOUBLED, UnexpectedAnswer, require_current_rows
from billing_grpc.storage.postgres.statements import KEPT_LOAD_OVERRIDES, LOAD_OVERRIDES, WORKSPACES
from billing_grpc.validation import joined_uuids

log = structlog.stdlib.get_logger(__name__)

Overrides = Mapping[str, StoredOverride | ResolutionError]

_ID_LENGTH: Final = 36
_ID: Final = re.compile("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_NOT_CANONICAL: Final = "a workspace id is not canonical"
_ARRAY_HEADER: Final = struct.Struct("!iii")
"""The number of dimensions, flags, and the type of the elements. The length of each dimension and its first index follow."""
_DIMENSION: Final = struct.Struct("!ii")
_LENGTH: Final = struct.Struct("!i")
_TEXT: Final = 25
"""The number of the type text in every Postgres."""
# These values are made once. A batch has a thousand of them.
_USUAL: Final = {b"": StoredOverride(None), **{f"={mode}".encode(): StoredOverride(mode.value) for mode in BillingMode}}
_UNREADABLE: Final = ResolutionError(ValueUnreadable.reason, ValueUnreadable.public_message)


def require_canonical(workspace_id: str) -> None:
    """Return if the id is canonical and in lower case.

    Raises:
        ValueError: it is not.
    """
    if _ID.fullmatch(workspace_id) is None:
        raise ValueError(_NOT_CANONICAL)


def id_array(workspace_ids: Collection[str]) -> str:
    """Return the ids as an array in the text format of Postgres; raise as `require_canonical`."""
    ids = joined_uuids(workspace_ids, ",")
    if ids is None or ids != ids.lower():
        raise ValueError(_NOT_CANONICAL)
    return f"{{{ids}}}"


async def load_overrides(connection: Connection, workspace_ids: Collection[str]) -> Overrides:
    """Return the override of each workspace that exists, by its id.

    Args:
        connection: in no transaction.
        workspace_ids: canonical ids in lower case.

    Raises:
        ValueError: an id is not canonical.
        UnexpectedAnswer: the rows do not answer the question.
        StaleSession: the server of this connection may hold old values.
        StorageError: the table may hold old values, or hide rows.
    """
    parameters = [id_array(workspace_ids), str(_limit(workspace_ids))]
    result = await connection.fetch(LOAD_OVERRIDES, KEPT_LOAD_OVERRIDES, parameters)
    standing, rows = result.get_value(0, 0), result.get_value(0, 1)
    if result.ntuples != 1 or standing is None or rows is None:
        raise UnexpectedAnswer
    await require_current_rows(connection.read, [(standing,)], WORKSPACES)
    return overrides_in(elements(rows), workspace_ids, connection.text_encoding)


def overrides_in(rows: Sequence[bytes], asked: Collection[str], encoding: str) -> Overrides:
    """Return the overrides in the rows of `LOAD_OVERRIDES`.

    Args:
        rows: the elements of the array.
        asked: the ids of the question.
        encoding: Python's name of the encoding of the rows.

    Raises:
        UnexpectedAnswer: the rows do not answer the question.
        ValueUnreadable: one id has so many rows that the rows of others may be missing.
    """
    found: dict[str, StoredOverride | ResolutionError] = {
        row[:_ID_LENGTH].decode("ascii", "replace"): _USUAL.get(row[_ID_LENGTH:]) or _override(row, encoding)
        for row in rows
    }
    if not found.keys() <= set(asked):
        raise UnexpectedAnswer
    if len(found) < len(rows):
        _reject_doubled(found, rows, asked)
    return found


def _reject_doubled(
    found: dict[str, StoredOverride | ResolutionError], rows: Sequence[bytes], asked: Collection[str]
) -> None:
    """Replace the override of each id that has several rows."""
    count = Counter(row[:_ID_LENGTH].decode() for row in rows)
    if len(rows) >= _limit(asked) and any(count[key] <= 1 for key in asked):
        raise ValueUnreadable
    for key in found:
        if count[key] > 1:
            log.warning("storage failed", reason=ValueUnreadable.reason, text=DOUBLED, workspace=key)
            found[key] = _UNREADABLE


def _limit(asked: Collection[str]) -> int:
    """Return how many rows may come back: two for each id, so that a second row is noticed."""
    return 2 * len(asked)


def _override(row: bytes, encoding: str) -> StoredOverride | ResolutionError:
    key, sign, text = row[:_ID_LENGTH], row[_ID_LENGTH : _ID_LENGTH + 1], row[_ID_LENGTH + 1 :]
    if sign != b"=":
        raise UnexpectedAnswer
    try:
        return StoredOverride(text.decode(encoding))
    except UnicodeDecodeError:
        log.warning("stored override is not UTF-8", workspace=key.decode("ascii", "replace"))
        return _UNREADABLE


def elements(array: bytes) -> list[bytes]:
    """Return the elements of an array of text in binary format.

    Raises:
        UnexpectedAnswer: it is another kind of value, or an element is NULL.
        struct.error: it is no array.
    """
    dimensions, _, kind = _ARRAY_HEADER.unpack_from(array)
    if dimensions > 1 or kind != _TEXT:
        raise UnexpectedAnswer
    found: list[bytes] = []
    at = _ARRAY_HEADER.size + dimensions * _DIMENSION.size
    length_at = _LENGTH.unpack_from
    while at < len(array):
        (length,) = length_at(array, at)
        if length < 0:
            raise UnexpectedAnswer
        start = at + _LENGTH.size
        at = start + length
        found.append(array[start:at])
    return found
