"""Server certificates from files, taken up again when they are renewed."""

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
"""How often files that were found broken are looked at again: what was wrong may not have been in them."""
_MAX_BYTES: Final = 1 << 20
_TRIES: Final = 3
"""How often files that are being replaced just now are read again before they count as broken."""

Contents: TypeAlias = tuple[bytes, bytes, bytes | None]
"""A key, its certificate chain, and the authorities that sign clients' certificates."""


class TlsFiles:
    """A certificate chain, its key and, for mutual TLS, the authorities that sign clients' certificates.

    Looked at before each handshake; what is broken or half renewed changes nothing and is said loudly.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Reads and checks the files.

        Raises:
            SettingsError: one of them cannot be read, is not what it should be, or key and certificate do not match.
        """
        self._certificate = WatchedFile(certificate, _MAX_BYTES)
        self._key = WatchedFile(key, _MAX_BYTES)
        self._client_ca = None if client_ca is None else WatchedFile(client_ca, _MAX_BYTES)
        self._contents = ReloadedFile(
            self._files(), self._read, on_made=self._log_read, on_broken=self._log_broken, retry_seconds=_RETRY_SECONDS
        )
        self._warn_of_the_end(self._contents.current())

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """Credentials for a listener; `mutual` requires a client certificate, which needs a client CA."""
        served: list[object] = [None]

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            current = self.current()
            if served[0] is current:
                return None
            served[0] = current
            return _configuration(current, mutual=mutual)

        served[0] = initial = self.current()
        # gRPC takes None for "no change", which its type stubs do not know.
        fetcher: Any = renewed
        return grpc.dynamic_ssl_server_credentials(
            _configuration(initial, mutual=mutual), fetcher, require_client_authentication=mutual
        )

    def current(self) -> Contents:
        """Key, certificate chain and client CA in force."""
        return self._contents.current()

    def client_authorities(self) -> bytes:
        """Return the authorities that sign clients' certificates now, in PEM; empty if there are none."""
        return self.current()[2] or b""

    def reload(self) -> None:
        """Reads the files again, and says so if they are broken, even if that was said a moment ago."""
        self._contents.reload()

    def _log_read(self, _: Contents | None, contents: Contents) -> None:
        log.info("TLS files read", certificate=str(self._certificate.path))
        self._warn_of_the_end(contents)

    def _log_broken(self, error: Exception) -> None:
        unexpected = None if isinstance(error, SettingsError) else error
        problems = problems_of(error)
        log.error("TLS files are broken, the old ones stay in force", problems=problems, exc_info=unexpected)

    def _warn_of_the_end(self, contents: Contents) -> None:
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
            # That has opened the files itself: only if they are still the same were these bytes checked.
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
        # gRPC itself would accept a mismatch and then fail every handshake.
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # An encrypted key is refused; without this OpenSSL would ask for the password, and wait.
            context.load_cert_chain(self._certificate.path, self._key.path, password=lambda: "")
        except (OSError, ssl.SSLError, ValueError) as error:
            pair = f"{self._certificate.path} and {self._key.path}"
            raise SettingsError([f"{pair}: not a certificate and its unencrypted key ({_said(error)})"]) from error


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
        raise SettingsError([f"{path}: not certificates in PEM ({_said(error)})"]) from error


def _content(file: WatchedFile) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise SettingsError([f"{file.path}: {error.strerror}"]) from error


def _said(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__


def _configuration(current: Contents, *, mutual: bool) -> grpc.ServerCertificateConfiguration:
    key, certificate, client_ca = current
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca if mutual else None)
