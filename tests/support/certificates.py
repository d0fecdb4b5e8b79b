"""Makes certificates for the TLS tests, on the spot and valid for minutes."""

import datetime as dt
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SERIALS: Final = itertools.count(1)


@dataclass(frozen=True)
class Authority:
    """A certificate authority that signs what it is asked to."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(
        cls,
        name: str,
        *,
        by: Self | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        ends: dt.datetime | None = None,
        may_sign: bool = True,
    ) -> Self:
        """An authority signed by itself or by another; its certificate began two days ago and ends in two unless told."""
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder(by.name if by else subject, subject, key.public_key(), next(SERIALS))
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(ends or now + dt.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=may_sign, path_length=None), critical=True)
            .add_extension(_key_usage(may_sign=may_sign), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_signed_with(by.key if by else key), critical=False)
            .sign(by.key if by else key, hashes.SHA256())
        )
        return cls(subject, key, certificate)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *,
        dns: tuple[str, ...] = (),
        uris: tuple[str, ...] = (),
        expired: bool = False,
        ends: dt.datetime | None = None,
    ) -> "Issued":
        """A certificate with these names; it ends in an hour unless told otherwise, an expired one ended yesterday."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        end = now - dt.timedelta(days=1) if expired else ends or now + dt.timedelta(hours=1)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a common name is no identity")])
        names = [*map(x509.DNSName, dns), *map(x509.UniformResourceIdentifier, uris)]
        certificate = (
            x509.CertificateBuilder(self.name, subject, key.public_key(), next(SERIALS))
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(_signed_with(self.key), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return Issued(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Writes both; answers the paths of certificate and key."""
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_bytes(self.certificate)
        key.write_bytes(self.key)
        return certificate, key


def _signed_with(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    """What clients of Python 3.13 and later insist on."""
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _key_usage(*, may_sign: bool) -> x509.KeyUsage:
    """What the same clients insist on for an authority."""
    return x509.KeyUsage(
        digital_signature=not may_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=may_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
