"""Texts of the database, of which one that is not UTF-8 must not make the others unreadable."""

from typing import Final

from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format

UNIVERSAL_ENCODINGS: Final = {"utf-8", "ascii"}
"""Python's names of the encodings in which every text can be sent. "ascii" stands for SQL_ASCII, which takes any bytes."""


class TextAsBytes(Loader):
    """Leave a text undecoded."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        """Return the bytes of a text."""
        return bytes(data)


def as_text(value: bytes | str, errors: str = "strict") -> str:
    """Return a text that `TextAsBytes` may have left undecoded; `errors` as `bytes.decode` takes it."""
    return value.decode(errors=errors) if isinstance(value, bytes) else value
