"""The checks of settings beyond their types: checks that read another setting, and checks that try the later user.

Each returns the value, or raises `ValueError` with the problem and the remedy.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr, ValidationInfo

from billing_grpc.addresses import Address, TcpAddress, UnixAddress
from billing_grpc.catalogue import RESERVED_PREFIX, NameSet, load
from billing_grpc.errors import CatalogueError, SettingsError
from billing_grpc.secret_keys import is_reserved, normalise
from billing_grpc.server.auth.principals_file import PrincipalsFile
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.server.telemetry.spans import require_exporter
from billing_grpc.storage.postgres import parse_address


def understood_database(value: SecretStr | None) -> SecretStr | None:
    """Require an address that the driver understands."""
    if value is not None:
        _use(parse_address, value.get_secret_value())
    return value


def database_or_laptop(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """Require an address, unless local admin is on and the embedded database may start."""
    if value is None and info.data.get("local_admin") is False:
        # A new embedded database is empty: in production every workspace would inherit the default.
        raise ValueError("name the Postgres to use; the embedded one starts only under BILLING_GRPC_LOCAL_ADMIN=on")
    return value


def certificate_with_key(value: Path | None, info: ValidationInfo) -> Path | None:
    """Require both the server's certificate and its key, or neither."""
    if (value is None) != (info.data.get("tls_cert") is None):
        raise ValueError("a certificate and its key go together: set BILLING_GRPC_TLS_CERT too, or neither")
    return value


def readable_tls_files(value: Path | None, info: ValidationInfo) -> Path | None:
    """Require TLS files that can be read and belong together."""
    certificate, key = info.data.get("tls_cert"), info.data.get("tls_key")
    if certificate is not None and key is not None:
        _use(TlsFiles, certificate, key, value)
    return value


def known_callers(value: Path | None, info: ValidationInfo) -> Path | None:
    """Require a readable tokens file, unless local admin is on."""
    if value is None and info.data.get("tls_client_ca") is not None:
        raise ValueError("this file gives roles to the names in clients' certificates: set it too")
    if value is None and info.data.get("local_admin") is False:
        raise ValueError(
            "no caller could use this server. Name the callers: BILLING_GRPC_TOKENS_FILE (tokens), with"
            " BILLING_GRPC_TLS_CLIENT_CA (client certificates), or, on a laptop, BILLING_GRPC_LOCAL_ADMIN=on"
        )
    if value is not None:
        _use(PrincipalsFile, value)
    return value


def one_org_default(value: Path | None, info: ValidationInfo) -> Path | None:
    """Require at most one source of the org default."""
    if value is not None and info.data.get("org_default") is not None:
        raise ValueError("set this or MOLECULE_LLM_BILLING_MODE, not both")
    return value


def safe_listeners(value: tuple[Address, ...], info: ValidationInfo) -> tuple[Address, ...]:
    """Require TLS files for TLS, loopback for local admin, and a permission for tokens in plain text."""
    if not value:
        raise ValueError("name at least one address, as in 127.0.0.1:50051")
    tcp = [each for each in value if isinstance(each, TcpAddress)]
    if any(each.security != "plain" for each in tcp) and info.data.get("tls_cert") is None:
        raise ValueError("tls:// and mtls:// need BILLING_GRPC_TLS_CERT and BILLING_GRPC_TLS_KEY")
    if any(each.security == "mtls" for each in tcp) and info.data.get("tls_client_ca") is None:
        raise ValueError("mtls:// needs BILLING_GRPC_TLS_CLIENT_CA")
    beyond = [each for each in tcp if not each.is_loopback]
    if beyond and info.data.get("local_admin"):
        raise ValueError(
            f"under BILLING_GRPC_LOCAL_ADMIN=on every caller is admin, so {_listed(beyond)} is"
            " refused: use a loopback address or unix:/path"
        )
    plain = [each for each in beyond if each.security == "plain"]
    if plain and not info.data.get("allow_tokens_in_plaintext"):
        raise ValueError(
            f"{_listed(plain)} would send tokens over the network in plain text: use tls:// or mtls://, or set"
            " BILLING_GRPC_ALLOW_TOKENS_IN_PLAINTEXT=on if something else encrypts that network"
        )
    return value


def shareable_ports(value: int, info: ValidationInfo) -> int:
    """Require one worker where workers cannot share the ports."""
    if value > 1 and sys.platform != "linux":
        raise ValueError("several workers share their ports, which works on Linux only: use 1")
    unix = [each for each in info.data.get("listen", ()) if isinstance(each, UnixAddress)]
    if value > 1 and unix:
        raise ValueError(f"several workers cannot share {unix[0]}: use TCP addresses alone, or 1")
    return value


def traces_extra(value: str | None) -> str | None:
    """Require the packages that send traces."""
    if value is not None:
        _use(require_exporter)
    return value


def catalogue_loads(value: NameSet) -> NameSet:
    """Require a catalogue without errors; return the set unchanged."""
    try:
        load()
    except CatalogueError as error:
        raise ValueError("; ".join(str(error).splitlines())) from error
    return value


def names_of_keys(value: tuple[str, ...]) -> tuple[str, ...]:
    """Require names of keys outside of the reserved prefix; return them normalised."""
    names = [(key, normalise(key)) for key in value]
    bad = [key for key, name in names if name is None]
    if bad:
        raise ValueError(f"not a key's name: {', '.join(map(repr, bad))}; use letters, digits, _ . and -")
    reserved = [name for _, name in names if name is not None and is_reserved(name)]
    if reserved:
        raise ValueError(f"{', '.join(reserved)}: {RESERVED_PREFIX}* is refused in every mode already; leave it out")
    return tuple(name for _, name in names if name is not None)


def _use(user: Callable[..., object], *values: object) -> None:
    """Call the later user of these values now, so that its errors are reported together with all others."""
    try:
        user(*values)
    except SettingsError as error:
        raise ValueError("; ".join(error.problems)) from error


def _listed(addresses: list[TcpAddress]) -> str:
    return ", ".join(map(str, addresses))
