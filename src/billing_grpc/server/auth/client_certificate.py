"""Read a client's certificate: its names, and when it is valid under the authorities in force. Pure."""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

_KEPT: Final = 1024
"""How many certificates stay in the cache; to read one and check its signatures takes as long as several calls."""
_MOST_SENT: Final = 16
"""How many intermediate certificates of a client are looked at."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate that gRPC verified in a handshake, which may have been long ago.

    gRPC resumes sessions and keeps connections without a second check of the certificate, so the server checks `holds` at
    every call.

    Attributes:
        uris: the URIs among its subject alternative names.
        dns_names: the DNS names among them.
        validity: first and last moment of each path to an authority, all certificates on the path counted.
    """

    uris: tuple[str, ...]
    dns_names: tuple[str, ...]
    validity: tuple[tuple[dt.datetime, dt.datetime], ...]

    @staticmethod
    @lru_cache(maxsize=_KEPT)
    def read(certificate: bytes, sent_along: bytes, authorities: bytes) -> "ClientCertificate | None":
        """Return a certificate as read, or `None` if it cannot be read; the result is cached.

        Args:
            certificate: the client's own, in PEM.
            sent_along: the intermediate certificates that the client sent with it, in PEM; may be empty.
            authorities: the certificates of the authorities in force, in PEM.
        """
        try:
            own = x509.load_pem_x509_certificate(certificate)
            sent = x509.load_pem_x509_certificates(sent_along)[:_MOST_SENT] if sent_along else []
            uris, dns_names = _names(own)
        except ValueError:
            return None
        return ClientCertificate(uris, dns_names, tuple(_validity(own, sent, _authorities(authorities))))

    def holds(self, now: dt.datetime) -> bool:
        """Return whether the certificate and one of its paths to an authority are valid at this moment."""
        return any(begins <= now <= ends for begins, ends in self.validity)


@lru_cache(maxsize=2)
def _authorities(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem) if pem else []


def _names(certificate: x509.Certificate) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the URIs and the DNS names of the subject.

    They come from the certificate and not from gRPC, which cuts a name at its first NUL.

    Raises:
        ValueError: a name is not printable ASCII, or the names cannot be read.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), ()
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError("the names cannot be read") from error
    uris = tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
    dns_names = tuple(names.get_values_for_type(x509.DNSName))
    if not all(name.isascii() and name.isprintable() for name in (*uris, *dns_names)):
        raise ValueError("a name is not printable ASCII")
    return uris, dns_names


def _validity(
    certificate: x509.Certificate, sent: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> Iterator[tuple[dt.datetime, dt.datetime]]:
    """Yield first and last moment of each path from a certificate to an authority.

    gRPC has verified the whole path in the handshake. This check finds out whether the path still ends at an authority,
    and when it is valid.
    """
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if certificate in authorities:
        yield begins, ends
    for issuer in authorities:
        if _has_issued(issuer, certificate):
            yield max(begins, issuer.not_valid_before_utc), min(ends, issuer.not_valid_after_utc)
    for issuer in sent:
        if _may_issue(issuer) and _has_issued(issuer, certificate):
            others = [each for each in sent if each is not issuer]
            for first, last in _validity(issuer, others, authorities):
                yield max(begins, first), min(ends, last)


def _may_issue(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, x509.InvalidVersion):
        return False
    return True
