"""Read and check the TLS files that verify the server and identify the client."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from billing_grpc.watched_file import WatchedFile

_MAX_FILE_BYTES: Final = 1 << 20
_TRIES: Final = 3
"""How often files that change while they are read are read again; after that they count as broken."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """The files that verify the server and identify the client. They are read again when they change.

    Attributes:
        ca: the authorities that sign the server's certificate, PEM; `None` for gRPC's own roots.
        cert: the client's certificate chain, PEM, for a listener that requires one; needs `key`.
        key: the key of `cert`, PEM.
        server_name: the name in the server's certificate, if it is not the dialled host.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` if only one of `cert` and `key` is given."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client certificate needs its key, and the key its certificate: give both")


class TlsFiles:
    """The files of a `ClientTls`, as gRPC takes them.

    Attributes:
        watched: the files, to notice that one changes.
        server_name: as in `ClientTls`.
    """

    def __init__(self, tls: ClientTls) -> None:
        self._tls = tls
        paths = (tls.ca, tls.cert, tls.key)
        self._files = {path: WatchedFile(path, _MAX_FILE_BYTES) for path in paths if path is not None}
        self.watched = tuple(self._files.values())
        self.server_name = tls.server_name

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files of the authorities, the key and the certificate, check them together, and return them for gRPC.

        gRPC checks nothing here. With a key of another certificate, every handshake fails. With an empty file of
        authorities, gRPC trusts its own roots. With an empty certificate or key, it aborts the process.

        Raises:
            OSError: a file cannot be read, or OpenSSL refuses one.
            ValueError: a file holds a NUL, or the files change while they are read.
        """
        tls = self._tls
        for _ in range(_TRIES):
            ca, key, cert = map(self._read, (tls.ca, tls.key, tls.cert))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if ca is not None:
                # OpenSSL's binding takes ASCII only; comments between certificates may hold any bytes.
                context.load_verify_locations(cadata=ca.decode("ascii", "replace").replace("\ufffd", "?"))
            if tls.cert is not None:
                # An encrypted key is refused; without this, OpenSSL would prompt for the password and wait.
                context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
            # OpenSSL opened two of the files itself: it checked these bytes only if the files are unchanged.
            if not any(file.changed() for file in self.watched):
                return grpc.ssl_channel_credentials(ca, key, cert)
        raise ValueError("they change while they are read")

    def _read(self, path: Path | None) -> bytes | None:
        """Return a file's content; refuse a NUL, because gRPC stops reading at one and OpenSSL does not."""
        if path is None:
            return None
        content = self._files[path].read()
        if b"\0" in content:
            raise ValueError("one of them holds a NUL")
        return content


def problem(error: Exception) -> str:
    """Return what is wrong, without the content of a file."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "not PEM"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) if isinstance(error, ValueError) else f"unexpected {type(error).__name__}"
