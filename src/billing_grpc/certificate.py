"""What a server certificate says of its key and its end; Python's `ssl` tells neither of a certificate of one's own.

Pure, and no check: it reads a certificate that OpenSSL has accepted already.
"""

import binascii
import datetime as dt
import re
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

MIN_RSA_BITS: Final = 2048
USABLE_KEYS: Final = "RSA of 2048 bits or more, P-256 or P-384"
"""The keys whose handshakes gRPC's TLS library makes; others OpenSSL accepts, and every handshake fails."""

_PEM: Final = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END ")
_RSA: Final = bytes.fromhex("2a864886f70d010101")
_ELLIPTIC: Final = bytes.fromhex("2a8648ce3d0201")
_CURVES: Final = {bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2b81040022")}
_VERSION: Final = 0xA0
_SHORT_YEAR: Final = 0x17
_LONG_LENGTH: Final = 0x80
_CENTURY_TURNS: Final = b"50"


class _Element(NamedTuple):
    tag: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, as far as it is looked at.

    Attributes:
        usable_key: whether its key is one of `USABLE_KEYS`.
        ends: until when it is valid.
    """

    usable_key: bool
    ends: dt.datetime

    @classmethod
    def first_of(cls, pem: bytes) -> Self:
        """The first certificate of a chain in PEM, which is the server's own.

        Raises:
            ValueError: there is none, or it is not understood.
        """
        found = _PEM.search(pem)
        if found is None:
            raise ValueError("no certificate in PEM")
        try:
            (whole,) = _elements(binascii.a2b_base64(found[1]))
            signed = _elements(_elements(whole.content)[0].content)
            # The version is left out of the oldest certificates.
            _, _, _, validity, _, key = signed[signed[0].tag == _VERSION :][:6]
            return cls(_is_usable(key), _time(_elements(validity.content)[1]))
        except IndexError as error:
            raise ValueError("not a certificate") from error


def _elements(der: bytes) -> list[_Element]:
    """The elements that stand one after the other in this DER."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length >= _LONG_LENGTH:
            size = length - _LONG_LENGTH
            length, at = int.from_bytes(der[at : at + size]), at + size
        found.append(_Element(tag, der[at : at + length]))
        at += length
    return found


def _is_usable(key: _Element) -> bool:
    algorithm, bits = _elements(key.content)
    kind, *parameters = _elements(algorithm.content)
    if kind.content == _RSA:
        # A bit string begins with the number of bits that its last byte lacks.
        (numbers,) = _elements(bits.content[1:])
        modulus = _elements(numbers.content)[0]
        return int.from_bytes(modulus.content).bit_length() >= MIN_RSA_BITS
    return kind.content == _ELLIPTIC and parameters[0].content in _CURVES


def _time(element: _Element) -> dt.datetime:
    text = element.content
    if element.tag == _SHORT_YEAR:
        text = (b"20" if text[:2] < _CENTURY_TURNS else b"19") + text
    return dt.datetime.strptime(text.decode(), "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC)
