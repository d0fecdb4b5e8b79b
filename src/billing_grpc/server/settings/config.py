"""The settings: read once from flags and the environment, every problem reported at once.

The only module that reads the environment. Nothing here is a decision about billing: the org default is handed on as text
and interpreted by the resolver.
"""

import os
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from billing_grpc.addresses import Address, TcpAddress, UnixAddress
from billing_grpc.errors import SettingsError
from billing_grpc.secret_keys import RESERVED_PREFIX, is_reserved, normalise
from billing_grpc.server.auth.principals_file import PrincipalsFile
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.server.settings.limits import Limits
from billing_grpc.server.settings.types import (
    Addresses,
    CollectorUrl,
    CommaSeparated,
    DatabaseUrl,
    FileMode,
    LogLevel,
    MetricsAddress,
    Share,
    Switch,
)
from billing_grpc.server.telemetry.spans import require_exporter
from billing_grpc.setting_names import VARIABLES, other_settings
from billing_grpc.storage.postgres import POOL_SIZE, parse_address

_MAX_STORAGE_TIMEOUT: Final = 60
_MAX_DRAIN: Final = 3600
_DRAIN_MARGIN: Final = 0.5
"""Seconds beyond the storage timeout that a running call gets to finish, unless the setting says otherwise."""


class _FromEnvironment(BaseSettings):
    model_config = SettingsConfigDict(
        env_ignore_empty=True, hide_input_in_errors=True, case_sensitive=True, extra="ignore"
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value != ""}


def _understood(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        _right(parse_address, value.get_secret_value())
    return value


class DatabaseSettings(_FromEnvironment):
    """The database, the only setting that `billing-grpc migrate` needs."""

    database_url: DatabaseUrl = Field(None, alias="DATABASE_URL")

    _is_understood = field_validator("database_url")(_understood)


class Settings(_FromEnvironment, Limits):
    """All settings of `billing-grpc serve`.

    Fields stand in the order in which they are checked: a field whose check reads another field stands after it.
    """

    # A variable counts under its setting's name (the alias) alone, never under a field's name.
    model_config = SettingsConfigDict(populate_by_name=False)

    local_admin: Switch = Field(
        default=False,
        alias="BILLING_GRPC_LOCAL_ADMIN",
        description="on: whoever reaches loopback or a Unix socket is admin; for a laptop only",
    )
    database_url: DatabaseUrl = Field(
        None,
        alias="DATABASE_URL",
        description="the Postgres to use; unset: embedded, under local admin only",
        validate_default=True,
    )
    tls_cert: Path | None = Field(
        None, alias="BILLING_GRPC_TLS_CERT", description="the server's certificate chain; taken up again on renewal"
    )
    tls_key: Path | None = Field(
        None, alias="BILLING_GRPC_TLS_KEY", description="the key of the server's certificate", validate_default=True
    )
    tls_client_ca: Path | None = Field(
        None,
        alias="BILLING_GRPC_TLS_CLIENT_CA",
        description="the authorities that sign clients' certificates",
        validate_default=True,
    )
    tokens_file: Path | None = Field(
        None,
        alias="BILLING_GRPC_TOKENS_FILE",
        description="who is known: names, roles, token digests and certificate names; re-read on change and on SIGHUP",
        validate_default=True,
    )
    allow_tokens_in_plaintext: Switch = Field(
        default=False,
        alias="BILLING_GRPC_ALLOW_TOKENS_IN_PLAINTEXT",
        description="on: plain-text TCP beyond loopback, where whoever is on the network can read the tokens",
    )
    org_default: str | None = Field(
        None, alias="MOLECULE_LLM_BILLING_MODE", description="the organisation's default mode; unset: closed"
    )
    org_default_file: Path | None = Field(
        None,
        alias="MOLECULE_LLM_BILLING_MODE_FILE",
        description="a file that holds the organisation's default mode; re-read on change and on SIGHUP",
    )
    listen: Addresses = Field(
        (TcpAddress("127.0.0.1", 50051),),
        alias="BILLING_GRPC_LISTEN",
        description="comma-separated: host:port (plain), tls://host:port, mtls://host:port, unix:/path",
    )
    workers: int = Field(
        1,
        alias="BILLING_GRPC_WORKERS",
        ge=1,
        le=64,
        description="processes that answer on the same ports; more than one on Linux only, and not on Unix sockets",
    )
    unix_mode: FileMode = Field(
        0o600, alias="BILLING_GRPC_UNIX_MODE", description="the file mode of Unix sockets, in octal"
    )
    storage_timeout: float = Field(
        1.0,
        alias="BILLING_GRPC_STORAGE_TIMEOUT",
        gt=0,
        le=_MAX_STORAGE_TIMEOUT,
        allow_inf_nan=False,
        description="seconds of storage a call may use",
    )
    database_connections: int = Field(
        POOL_SIZE,
        alias="BILLING_GRPC_DATABASE_CONNECTIONS",
        ge=2,  # half of them are for reads alone
        le=1000,
        description="connections to the database that each worker holds",
    )
    drain_delay: float = Field(
        0.0,
        alias="BILLING_GRPC_DRAIN_DELAY",
        ge=0,
        le=_MAX_DRAIN,
        allow_inf_nan=False,
        description="seconds after SIGTERM in which new calls are still answered while health says NOT_SERVING",
    )
    drain_grace: float | None = Field(
        None,
        alias="BILLING_GRPC_DRAIN_GRACE",
        ge=0,
        le=_MAX_DRAIN,
        allow_inf_nan=False,
        description="seconds that running calls get to finish; unset: the storage timeout and half a second",
    )
    extra_blocked_keys: CommaSeparated = Field(
        (), alias="BILLING_GRPC_EXTRA_BLOCKED_KEYS", description="comma-separated names added to the vendor keys"
    )
    reflection: Switch = Field(
        default=True,
        alias="BILLING_GRPC_REFLECTION",
        description="whether the contract can be listed over the wire: on, off",
    )
    metrics_listen: MetricsAddress = Field(
        TcpAddress("127.0.0.1", 9464),
        alias="BILLING_GRPC_METRICS_LISTEN",
        description="host:port of the metrics, or off",
    )
    traces_endpoint: CollectorUrl = Field(
        None,
        alias="BILLING_GRPC_TRACES_ENDPOINT",
        description="the OTLP/HTTP collector's URL for traces, as in http://127.0.0.1:4318/v1/traces; unset: no traces",
    )
    traces_sample: Share = Field(
        1.0,
        alias="BILLING_GRPC_TRACES_SAMPLE",
        description="the part of the traces to record, 0 to 1; a call that comes in a trace is recorded as its caller is",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", alias="BILLING_GRPC_LOG_FORMAT", description="console, json; auto: console on a terminal, else json"
    )
    log_level: LogLevel = Field("INFO", alias="BILLING_GRPC_LOG_LEVEL", description="DEBUG, INFO, WARNING, ERROR")
    data_dir: Path | None = Field(
        None,
        alias="BILLING_GRPC_DATA_DIR",
        description="where the embedded database lives; unset: the user's state folder",
    )

    @property
    def grace(self) -> float:
        """Return the seconds that running calls get to finish when the process stops."""
        return self.storage_timeout + _DRAIN_MARGIN if self.drain_grace is None else self.drain_grace

    def limits(self) -> Limits:
        """Return the settings that are limits."""
        return Limits(**{name: getattr(self, name) for name in Limits.model_fields})

    @field_validator("database_url")
    @classmethod
    def _embedded_is_for_a_laptop(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None and info.data.get("local_admin") is False:
            # A new embedded database is empty: in production every workspace would inherit the default.
            raise ValueError(
                "name the Postgres to use; only under BILLING_GRPC_LOCAL_ADMIN=on does one start by itself"
            )
        return value

    _database_url_is_understood = field_validator("database_url")(_understood)

    @field_validator("tls_key")
    @classmethod
    def _certificate_and_key(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("tls_cert") is None):
            raise ValueError("a certificate and its key go together: set BILLING_GRPC_TLS_CERT too, or neither")
        return value

    @field_validator("tls_client_ca")
    @classmethod
    def _tls_files_are_right(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        certificate, key = info.data.get("tls_cert"), info.data.get("tls_key")
        if certificate is not None and key is not None:
            _right(TlsFiles, certificate, key, value)
        return value

    @field_validator("tokens_file")
    @classmethod
    def _somebody_may_call(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and info.data.get("tls_client_ca") is not None:
            raise ValueError("the names in clients' certificates get their roles here: set it too")
        if value is None and info.data.get("local_admin") is False:
            raise ValueError(
                "nobody could call this server. Name who may: BILLING_GRPC_TOKENS_FILE (tokens), with"
                " BILLING_GRPC_TLS_CLIENT_CA (client certificates), or, on a laptop, BILLING_GRPC_LOCAL_ADMIN=on"
            )
        if value is not None:
            _right(PrincipalsFile, value)
        return value

    @field_validator("org_default_file")
    @classmethod
    def _one_org_default(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("org_default") is not None:
            raise ValueError("set this or MOLECULE_LLM_BILLING_MODE, not both")
        return value

    @field_validator("listen")
    @classmethod
    def _listeners_are_safe(cls, value: tuple[Address, ...], info: ValidationInfo) -> tuple[Address, ...]:
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
                f"under BILLING_GRPC_LOCAL_ADMIN=on whoever reaches the server is admin, so {_listed(beyond)} is"
                " refused: use a loopback address or unix:/path"
            )
        plain = [each for each in beyond if each.security == "plain"]
        if plain and not info.data.get("allow_tokens_in_plaintext"):
            raise ValueError(
                f"{_listed(plain)} would send tokens over the network in plain text: use tls:// or mtls://, or set"
                " BILLING_GRPC_ALLOW_TOKENS_IN_PLAINTEXT=on if something else encrypts that network"
            )
        return value

    @field_validator("workers")
    @classmethod
    def _workers_can_share(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and sys.platform != "linux":
            raise ValueError("several workers share their ports, which works on Linux only: use 1")
        unix = [each for each in info.data.get("listen", ()) if isinstance(each, UnixAddress)]
        if value > 1 and unix:
            raise ValueError(f"several workers cannot share {unix[0]}: use TCP addresses alone, or 1")
        return value

    @field_validator("traces_endpoint")
    @classmethod
    def _traces_can_be_sent(cls, value: str | None) -> str | None:
        if value is not None:
            _right(require_exporter)
        return value

    @field_validator("extra_blocked_keys")
    @classmethod
    def _names_of_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [(key, normalise(key)) for key in value]
        bad = [key for key, name in names if name is None]
        if bad:
            raise ValueError(f"not a key's name: {', '.join(map(repr, bad))}; use letters, digits, _ . and -")
        reserved = [name for _, name in names if name is not None and is_reserved(name)]
        if reserved:
            raise ValueError(
                f"{', '.join(reserved)}: {RESERVED_PREFIX}* is refused in every mode already; leave it out"
            )
        return tuple(name for _, name in names if name is not None)


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Return the settings of `serve`; a flag, given by its setting's name, wins over the environment.

    Raises:
        SettingsError: a setting is wrong; one sentence for each.
    """
    unknown = unknown_settings()
    try:
        settings = Settings(**_given(flags))
    except ValidationError as error:
        raise SettingsError(_problems(error, Settings) + unknown) from error
    if unknown:
        raise SettingsError(unknown)
    return settings


def load_database_url(flag: str | None) -> str:
    """Return the URL of the database that `migrate` works on.

    Raises:
        SettingsError: the URL is missing or is no Postgres, or a setting is unknown (it may be a misspelt DATABASE_URL).
    """
    if unknown := unknown_settings():
        raise SettingsError(unknown)
    try:
        url = DatabaseSettings(**_given({"DATABASE_URL": flag})).database_url
    except ValidationError as error:
        raise SettingsError(_problems(error, DatabaseSettings)) from error
    if url is None:
        raise SettingsError(["DATABASE_URL: name the Postgres to migrate; there is no default"])
    return url.get_secret_value()


def unknown_settings() -> list[str]:
    """Return one sentence for every variable that is named like a setting and is not one: it may be misspelt."""
    known = {*(str(field.alias) for field in Settings.model_fields.values()), *VARIABLES.values()}
    return [
        f"{name}: there is no such setting; the nearest is {get_close_matches(name.upper(), sorted(known), 1, 0)[0]}"
        for name in other_settings(os.environ)
        if name not in known
    ]


def environment_with(additions: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of this process's environment with additions, for a child process; no setting is read here."""
    # `quieten_grpc` sets the same for this process, but not in `os.environ`.
    return {"GRPC_VERBOSITY": "NONE", **os.environ, **additions}


def _listed(addresses: list[TcpAddress]) -> str:
    return ", ".join(map(str, addresses))


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    # An empty flag wins over the environment like any other, and says "unset".
    return {name: value for name, value in flags.items() if value is not None}


def _right(use: Callable[..., object], *values: object) -> None:
    """Call the later user of these values now, so that its errors are reported together with all others."""
    try:
        use(*values)
    except SettingsError as error:
        raise ValueError("; ".join(error.problems)) from error


def _problems(error: ValidationError, settings: type[BaseSettings]) -> list[str]:
    # A default that is refused is reported under the field's name, a given value under the setting's.
    names = {name: str(field.alias) for name, field in settings.model_fields.items()}
    return [
        f"{names.get(str(problem['loc'][0]), problem['loc'][0])}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
