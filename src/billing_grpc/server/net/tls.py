"""Server certificates from files, which are read again when they are renewed."""

import datetime as dt
import ssl
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc
import structlog
from cryptography import x509

from billing_grpc.errors import SettingsError
from billing_grpc.reloaded_file import ReloadedFile, problems_of
from billing_grpc.server.net.certificates import USABLE_KEYS, Certificate
from billing_grpc.watched_file import WatchedFile

log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS: Final = 1.0
"""Seconds between two attempts to read broken files: the cause may not have been in the files."""
_MAX_BYTES: Final = 1 << 20
_TRIES: Final = 3
"""How often files that change during the read are read before they count as broken."""

Contents: TypeAlias = tuple[bytes, bytes, bytes | None]
"""A key, its certificate chain, and the authorities that sign clients' certificates."""


class TlsFiles:
    """A certificate chain, its key and, for mutual TLS, the authorities that sign clients' certificates.

    They are checked before each handshake. While they are broken or half renewed, the last good ones stay in force, and
    the log says so.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Read and check the files.

        Raises:
            SettingsError: a file cannot be read or is wrong, or the key does not match the certificate.
        """
        self._certificate = WatchedFile(certificate, _MAX_BYTES)
        self._key = WatchedFile(key, _MAX_BYTES)
        self._client_ca = None if client_ca is None else WatchedFile(client_ca, _MAX_BYTES)
        self._contents = ReloadedFile(
            self._files(), self._read, on_made=self._log_read, on_broken=self._log_broken, retry_seconds=_RETRY_SECONDS
        )
        self._warn_if_expired(self._contents.current())

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """Return credentials for a listener; with `mutual` it requires client certificates, which needs a client CA."""
        served: list[object] = [None]

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            current = self.current()
            if served[0] is current:
                return None
            served[0] = current
            return _configuration(current, mutual=mutual)

        served[0] = initial = self.current()
        # gRPC takes `None` as "no change", which its type stubs do not know.
        fetcher: Any = renewed
        return grpc.dynamic_ssl_server_credentials(
            _configuration(initial, mutual=mutual), fetcher, require_client_authentication=mutual
        )

    def current(self) -> Contents:
        """Return the key, the certificate chain and the client CA in force."""
        return self._contents.current()

    def client_authorities(self) -> bytes:
        """Return the authorities that sign clients' certificates now, in PEM; empty if there are none."""
        return self.current()[2] or b""

    def reload(self) -> None:
        """Read the files again; log their problems even if the same were logged a moment ago."""
        self._contents.reload()

    def _log_read(self, _: Contents | None, contents: Contents) -> None:
        log.info("TLS files read", certificate=str(self._certificate.path))
        self._warn_if_expired(contents)

    def _log_broken(self, error: Exception) -> None:
        unexpected = None if isinstance(error, SettingsError) else error
        problems = problems_of(error)
        log.error("TLS files are broken, the old ones stay in force", problems=problems, exc_info=unexpected)

    def _warn_if_expired(self, contents: Contents) -> None:
        ends = Certificate.first_of(contents[1]).ends
        if ends <= dt.datetime.now(dt.UTC):
            path = str(self._certificate.path)
            log.warning("server certificate has expired", certificate=path, ended=ends.isoformat())

    def _files(self) -> list[WatchedFile]:
        return [file for file in (self._certificate, self._key, self._client_ca) if file is not None]

    def _read(self) -> Contents:
        for _ in range(_TRIES):
            contents = {file: _content(file) for file in self._files()}
            self._require_pair()
            # OpenSSL opened the files itself: it checked these bytes only if the files have not changed since.
            if not any(file.changed() for file in self._files()):
                break
        else:
            raise SettingsError([f"{self._certificate.path} and {self._key.path}: changing all the time"])
        certificate = contents[self._certificate]
        _require_usable_key(certificate, self._certificate.path)
        if self._client_ca is None:
            return contents[self._key], certificate, None
        _require_authorities(contents[self._client_ca], self._client_ca.path)
        return contents[self._key], certificate, contents[self._client_ca]

    def _require_pair(self) -> None:
        # gRPC accepts a key that does not match, and then fails every handshake.
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # This refuses an encrypted key; without it OpenSSL would ask for the password, and wait.
            context.load_cert_chain(self._certificate.path, self._key.path, password=lambda: "")
        except (OSError, ssl.SSLError, ValueError) as error:
            pair = f"{self._certificate.path} and {self._key.path}"
            raise SettingsError([f"{pair}: not a certificate and its unencrypted key ({_cause(error)})"]) from error


def _require_usable_key(certificate: bytes, path: Path) -> None:
    try:
        usable = Certificate.first_of(certificate).usable_key
    except ValueError as error:
        raise SettingsError([f"{path}: not a certificate in PEM"]) from error
    if not usable:
        raise SettingsError([f"{path}: gRPC cannot use this kind of key; use {USABLE_KEYS}"])


def _require_authorities(client_ca: bytes, path: Path) -> None:
    # OpenSSL's binding takes ASCII only; a comment between certificates may be anything.
    text = client_ca.decode("ascii", "replace").replace("\ufffd", "?")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
        # Clients' certificates are compared with them at every call (`client_certificate`), by another library.
        x509.load_pem_x509_certificates(client_ca)
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError([f"{path}: not certificates in PEM ({_cause(error)})"]) from error


def _content(file: WatchedFile) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise SettingsError([f"{file.path}: {error.strerror}"]) from error


def _cause(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__


def _configuration(current: Contents, *, mutual: bool) -> grpc.ServerCertificateConfiguration:
    key, certificate, client_ca = current
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca if mutual else None)
