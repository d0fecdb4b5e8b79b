"""The names in a certificate, byte for byte: what gRPC hands out ends at the first NUL, and with it a forged name. Pure."""

from collections.abc import Iterator
from typing import Final

_SEQUENCE: Final = 0x30
_OCTET_STRING: Final = 0x04
_OBJECT_IDENTIFIER: Final = 0x06
_EXTENSIONS: Final = 0xA3
_DNS_NAME: Final = 0x82
_URI: Final = 0x86
_SUBJECT_ALT_NAME: Final = bytes((0x55, 0x1D, 0x11))  # 2.5.29.17
_LONG_LENGTH: Final = 0x80

Element = tuple[int, bytes]


def names(der: bytes) -> tuple[list[str], list[str]] | None:
    """The URIs and the DNS names that a certificate gives its subject.

    None when one of them is not printable ASCII, or when the certificate cannot be read: such a certificate names nobody.
    """
    try:
        found = list(_subject_alt_names(der))
        texts = [(tag, value.decode("ascii")) for tag, value in found if tag in {_URI, _DNS_NAME}]
    except ValueError:
        return None
    if not all(text.isprintable() for _, text in texts):
        return None
    return [text for tag, text in texts if tag == _URI], [text for tag, text in texts if tag == _DNS_NAME]


def _subject_alt_names(der: bytes) -> Iterator[Element]:
    certificate = _only(_elements(der), _SEQUENCE)
    to_be_signed = next(_elements(certificate), (0, b""))[1]
    for tag, value in _elements(to_be_signed):
        if tag == _EXTENSIONS:
            for _, extension in _elements(_only(_elements(value), _SEQUENCE)):
                identifier, *_, content = _elements(extension)
                if identifier == (_OBJECT_IDENTIFIER, _SUBJECT_ALT_NAME):
                    yield from _elements(_only(_elements(_only([content], _OCTET_STRING)), _SEQUENCE))


def _only(elements: "Iterator[Element] | list[Element]", tag: int) -> bytes:
    ((found, value),) = elements
    if found != tag:
        raise ValueError("not a certificate")
    return value


def _elements(der: bytes) -> Iterator[Element]:
    """The elements that stand one after the other, each as its tag and what it holds."""
    at = 0
    while at < len(der):
        if at + 1 >= len(der):
            raise ValueError("an element is cut off")
        tag, length, at = der[at], der[at + 1], at + 2
        if length >= _LONG_LENGTH:
            digits = length - _LONG_LENGTH
            length, at = int.from_bytes(der[at : at + digits]), at + digits
        if at + length > len(der):
            raise ValueError("an element is cut off")
        yield tag, der[at : at + length]
        at += length
