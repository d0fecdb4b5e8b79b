"""The checks of a request. Each failed check names the field and the remedy. Pure."""

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import Final, Literal

from billing_grpc.errors import FieldViolation, InvalidArgument, quoted
from billing_grpc.model import BillingMode
from billing_grpc.secret_keys import MAX_KEY_LENGTH, normalise

MAX_BATCH: Final = 1000
MAX_SECRET_KEYS: Final = 256
MAX_ENV_KEYS: Final = 4096
MAX_REASON: Final = 500
MAX_ACTOR: Final = 128
DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 500
MAX_WORKSPACES_PAGE: Final = 1000
NAMED_INDEXES: Final = 20
"""The largest number of invalid elements of a list that an error names."""

_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_HEX_AS_ZERO: Final = bytes.maketrans(b"0123456789ABCDEFabcdef", b"0" * 22)
_UUID_OF_ZEROS: Final = b"00000000-0000-0000-0000-000000000000"
_ACTOR: Final = re.compile(rf"[ -~]{{0,{MAX_ACTOR}}}")
_ETAG: Final = re.compile(r"[0-9]{1,19}(-[0-9a-f]{16})?")
_UUID_REMEDY: Final = "must be a UUID in its canonical 8-4-4-4-12 form"
# Control characters, and the two separators at which terminals and log viewers break lines.
_FORBIDDEN_CATEGORIES: Final = frozenset({"Cc", "Zl", "Zp"})


def workspace_id(text: str) -> str:
    """Return the id in lower case.

    Raises:
        InvalidArgument: WORKSPACE_ID_INVALID if it is not a canonical UUID, or empty.
    """
    if not _UUID.fullmatch(text):
        got = f"got {quoted(text)}" if text else "it is empty"
        raise InvalidArgument("WORKSPACE_ID_INVALID", FieldViolation("workspace_id", f"{_UUID_REMEDY}; {got}"))
    return text.lower()


def workspace_id_or_none(text: str) -> str | None:
    """Return the id as `workspace_id` does, or None for an empty text, which means "before the workspace exists"."""
    return workspace_id(text) if text else None


def joined_uuids(texts: Collection[str], separator: str) -> str | None:
    """Return the texts joined by a separator that no UUID holds; `None` if one of them is not a UUID in canonical form."""
    joined = separator.join(texts)
    # With each hexadecimal digit as 0, all of them are the UUID of zeros. A regular expression takes twice as long.
    zeros = separator.encode().join([_UUID_OF_ZEROS] * len(texts))
    return joined if joined.encode("ascii", "replace").translate(_HEX_AS_ZERO) == zeros else None


def batch_ids(texts: Sequence[str]) -> list[str]:
    """Return the ids in lower case, in their order, with duplicates.

    Raises:
        InvalidArgument: COUNT_OUT_OF_RANGE, or WORKSPACE_ID_INVALID with the first 20 invalid indexes.
    """
    _count("workspace_ids", len(texts), 1, MAX_BATCH, "split the request")
    if (lines := joined_uuids(texts, "\n")) is not None:
        return lines.lower().split("\n")
    return _each(
        "workspace_ids",
        texts,
        lambda text: text.lower() if _UUID.fullmatch(text) else None,
        "WORKSPACE_ID_INVALID",
        _UUID_REMEDY,
    )


def secret_names(keys: Sequence[str]) -> list[str]:
    """Return the normalised names of the keys, in their order.

    Raises:
        InvalidArgument: COUNT_OUT_OF_RANGE, or SECRET_KEY_INVALID with the first 20 invalid indexes. The message does not
            repeat the keys, because a caller may have sent a value by mistake.
    """
    _count("secret_keys", len(keys), 1, MAX_SECRET_KEYS, "split the request")
    remedy = (
        f"must be a name of at most {MAX_KEY_LENGTH} characters: a letter, digit or _, then letters, digits, _ . or -"
    )
    return _each("secret_keys", keys, normalise, "SECRET_KEY_INVALID", remedy)


def env_keys(keys: Sequence[str]) -> Sequence[str]:
    """Return the keys unchanged.

    Raises:
        InvalidArgument: COUNT_OUT_OF_RANGE.
    """
    _count("env_keys", len(keys), 0, MAX_ENV_KEYS, "leave out names that were already stripped")
    return keys


def reason(text: str) -> str:
    """Return the reason unchanged.

    Raises:
        InvalidArgument: TEXT_INVALID if it is longer than 500 code points or holds a control character.
    """
    if len(text) > MAX_REASON:
        problem = f"must have at most {MAX_REASON} code points; it has {len(text)}"
    elif any(unicodedata.category(c) in _FORBIDDEN_CATEGORIES for c in text):
        problem = "must be one line without control characters"
    else:
        return text
    raise InvalidArgument("TEXT_INVALID", FieldViolation("reason", problem))


def actor(values: Sequence[str | bytes]) -> str:
    """Return the person behind a caller, from the values of `x-billing-actor`; empty if the caller named none.

    Raises:
        InvalidArgument: TEXT_INVALID if there are several, or it is not at most 128 printable ASCII characters.
    """
    if not values:
        return ""
    if len(values) == 1 and isinstance(values[0], str) and _ACTOR.fullmatch(values[0]):
        return values[0]
    problem = f"must be sent once, with at most {MAX_ACTOR} printable ASCII characters"
    raise InvalidArgument("TEXT_INVALID", FieldViolation("x-billing-actor", problem))


def etag(text: str) -> str:
    """Return the etag unchanged; for a text that this service never sends, an etag that is stale for every workspace."""
    return text if not text or _ETAG.fullmatch(text) else "not an etag"


def page_size(number: int, most: int = MAX_PAGE) -> int:
    """Return the number of entries of a page: 50 for 0, and `most` for more than `most`.

    Raises:
        InvalidArgument: COUNT_OUT_OF_RANGE if it is negative.
    """
    if number < 0:
        raise InvalidArgument("COUNT_OUT_OF_RANGE", FieldViolation("page_size", f"must be 0 to {most}; it is {number}"))
    return min(number or DEFAULT_PAGE, most)


def change(kind: Literal["mode", "inherit"] | None, mode: BillingMode | None, number: int) -> BillingMode | None:
    """Return the mode to set; None to inherit.

    Args:
        kind: the field of `change` that was sent; None if neither was.
        mode: the mode that was sent; None if its number is not one of the three.
        number: the number of the mode that was sent.

    Raises:
        InvalidArgument: CHANGE_REQUIRED without a change, MODE_INVALID for an unknown mode.
    """
    allowed = ", ".join(f"BILLING_MODE_{each.name}" for each in BillingMode)
    if kind is None:
        problem = f"send mode (one of {allowed}) or inherit; a change must be explicit"
        raise InvalidArgument("CHANGE_REQUIRED", FieldViolation("change", problem))
    if kind == "inherit":
        return None
    if mode is None:
        problem = f"must be one of {allowed}; got {number}. To clear the override, send inherit"
        raise InvalidArgument("MODE_INVALID", FieldViolation("mode", problem))
    return mode


def secret_scope(kind: Literal["workspace_id", "org_wide"] | None) -> Literal["workspace_id", "org_wide"]:
    """Return the field of `scope` that was sent.

    Raises:
        InvalidArgument: SCOPE_REQUIRED if neither was.
    """
    if kind is None:
        problem = "send workspace_id (empty before the workspace exists) or org_wide"
        raise InvalidArgument("SCOPE_REQUIRED", FieldViolation("scope", problem))
    return kind


def _count(field: str, count: int, least: int, most: int, remedy: str) -> None:
    if not least <= count <= most:
        problem = f"must hold {least} to {most} elements; it holds {count}: {remedy if count else 'name at least one'}"
        raise InvalidArgument("COUNT_OUT_OF_RANGE", FieldViolation(field, problem))


def _each(
    field: str, texts: Sequence[str], accept: Callable[[str], str | None], error_reason: str, remedy: str
) -> list[str]:
    accepted = [accept(text) for text in texts]
    bad = [index for index, value in enumerate(accepted) if value is None]
    if bad:
        # Without the client's text, because twenty violations must fit into 4 KB of status details.
        named = [FieldViolation(f"{field}[{index}]", remedy) for index in bad[:NAMED_INDEXES]]
        raise InvalidArgument(error_reason, *named)
    return [value for value in accepted if value is not None]
