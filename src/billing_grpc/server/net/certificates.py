"""Read the key and the end of validity of the server's own certificate, which Python's `ssl` does not show.

Pure, and no check: it reads a certificate that OpenSSL has accepted already.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import PublicKeyAlgorithmOID

MIN_RSA_BITS: Final = 2048
USABLE_KEYS: Final = "RSA of 2048 bits or more, P-256 or P-384"
"""The keys that gRPC's TLS library can use; OpenSSL accepts others, with which every handshake fails."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The parts of a certificate that the server checks.

    Attributes:
        usable_key: whether its key is one of `USABLE_KEYS`.
        ends: until when it is valid.
    """

    usable_key: bool
    ends: dt.datetime

    @classmethod
    def first_of(cls, pem: bytes) -> Self:
        """Return the first certificate of a chain in PEM, which is the server's own.

        Raises:
            ValueError: the text holds no certificate, or one that cannot be read.
        """
        found = x509.load_pem_x509_certificate(pem)
        return cls(_is_usable(found), found.not_valid_after_utc)


def _is_usable(certificate: x509.Certificate) -> bool:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    if isinstance(key, rsa.RSAPublicKey):
        # A key for PSS alone is read as RSA too, but gRPC's library refuses it.
        plain = certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5
        return plain and key.key_size >= MIN_RSA_BITS
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
