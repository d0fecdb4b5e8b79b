"""Server certificates from files, taken up again when they are renewed."""

import ssl
import threading
from pathlib import Path
from typing import Any, Final

import grpc
import structlog

from billing_grpc.errors import SettingsError
from billing_grpc.watched_file import WatchedFile

log = structlog.stdlib.get_logger(__name__)

_MAX_BYTES: Final = 1 << 20


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
        # Handshakes happen on gRPC's threads.
        self._lock = threading.Lock()
        self._current = self._read()

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """Credentials for a listener; `mutual` requires a client certificate, which needs a client CA."""
        served: list[object] = [None]

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            current = self.current()
            if served[0] is current:
                return None
            served[0] = current
            return _configuration(current, mutual=mutual)

        with self._lock:
            served[0] = self._current
            initial = _configuration(self._current, mutual=mutual)
        # gRPC takes None for "no change", which its type stubs do not know.
        fetcher: Any = renewed
        return grpc.dynamic_ssl_server_credentials(initial, fetcher, require_client_authentication=mutual)

    def current(self) -> tuple[bytes, bytes, bytes | None]:
        """Key, certificate chain and client CA in force."""
        with self._lock:
            if any(file.changed() for file in self._files()):
                self._take_up()
            return self._current

    def reload(self) -> None:
        """Reads the files again."""
        with self._lock:
            self._take_up()

    def _take_up(self) -> None:
        try:
            self._current = self._read()
        except SettingsError as error:
            # A traceback would say no more than the problems do.
            log.error("TLS files are broken, the old ones stay in force", problems=error.problems)  # noqa: TRY400 - see above
        else:
            log.info("TLS files read", certificate=str(self._certificate.path))

    def _files(self) -> list[WatchedFile]:
        return [file for file in (self._certificate, self._key, self._client_ca) if file is not None]

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        contents = {file: _content(file) for file in self._files()}
        certificate, key = contents[self._certificate], contents[self._key]
        client_ca = None if self._client_ca is None else contents[self._client_ca]
        # gRPC itself would accept a mismatch and then fail every handshake.
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate.path, self._key.path, password=lambda: "")
        except (OSError, ssl.SSLError, ValueError) as error:
            pair = f"{self._certificate.path} and {self._key.path}"
            raise SettingsError([f"{pair}: not a certificate and its unencrypted key ({_said(error)})"]) from error
        if client_ca is not None and self._client_ca is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=client_ca.decode())
            except (ssl.SSLError, ValueError) as error:
                raise SettingsError([f"{self._client_ca.path}: not certificates in PEM ({_said(error)})"]) from error
        return key, certificate, client_ca


def _content(file: WatchedFile) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise SettingsError([f"{file.path}: {error.strerror}"]) from error


def _said(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__


def _configuration(current: tuple[bytes, bytes, bytes | None], *, mutual: bool) -> grpc.ServerCertificateConfiguration:
    key, certificate, client_ca = current
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca if mutual else None)
