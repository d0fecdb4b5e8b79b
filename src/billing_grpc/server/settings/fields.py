"""The settings of `billing-grpc serve`: each is declared once, with its variable, type, default and description."""

from pathlib import Path
from typing import Annotated, Final, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator, Field

from billing_grpc.addresses import TcpAddress
from billing_grpc.catalogue import NameSet
from billing_grpc.server.settings import checks
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
from billing_grpc.storage.postgres import POOL_SIZE

_MAX_STORAGE_TIMEOUT: Final = 60
_MAX_DRAIN: Final = 3600
_DRAIN_MARGIN: Final = 0.5
"""Seconds beyond the storage timeout that a running call gets to finish, unless the setting says otherwise."""


class ServeFields(Limits):
    """The settings of one server, limits included, described field by field.

    Fields stand in the order in which they are checked: a field whose check reads another field stands after it.
    """

    local_admin: Switch = Field(
        default=False,
        alias="BILLING_GRPC_LOCAL_ADMIN",
        description="on: every caller on loopback or a Unix socket is admin; for a laptop only",
    )
    database_url: Annotated[
        DatabaseUrl, AfterValidator(checks.database_or_laptop), AfterValidator(checks.understood_database)
    ] = Field(
        None,
        alias="DATABASE_URL",
        description="the Postgres to use; unset: embedded, under local admin only",
        validate_default=True,
    )
    tls_cert: Path | None = Field(
        None, alias="BILLING_GRPC_TLS_CERT", description="the server's certificate chain; read again when it is renewed"
    )
    tls_key: Annotated[Path | None, AfterValidator(checks.certificate_with_key)] = Field(
        None, alias="BILLING_GRPC_TLS_KEY", description="the key of the server's certificate", validate_default=True
    )
    tls_client_ca: Annotated[Path | None, AfterValidator(checks.readable_tls_files)] = Field(
        None,
        alias="BILLING_GRPC_TLS_CLIENT_CA",
        description="the authorities that sign clients' certificates",
        validate_default=True,
    )
    tokens_file: Annotated[Path | None, AfterValidator(checks.known_callers)] = Field(
        None,
        alias="BILLING_GRPC_TOKENS_FILE",
        description="the callers: names, roles, token digests and certificate names; re-read on change and on SIGHUP",
        validate_default=True,
    )
    allow_tokens_in_plaintext: Switch = Field(
        default=False,
        alias="BILLING_GRPC_ALLOW_TOKENS_IN_PLAINTEXT",
        description="on: plain-text TCP beyond loopback, where others on the network can read the tokens",
    )
    org_default: str | None = Field(
        None, alias="MOLECULE_LLM_BILLING_MODE", description="the organisation's default mode; unset: closed"
    )
    org_default_file: Annotated[Path | None, AfterValidator(checks.one_org_default)] = Field(
        None,
        alias="MOLECULE_LLM_BILLING_MODE_FILE",
        description="a file that holds the organisation's default mode; re-read on change and on SIGHUP",
    )
    listen: Annotated[Addresses, AfterValidator(checks.safe_listeners)] = Field(
        (TcpAddress("127.0.0.1", 50051),),
        alias="BILLING_GRPC_LISTEN",
        description="comma-separated: host:port (plain), tls://host:port, mtls://host:port, unix:/path",
    )
    workers: Annotated[int, Ge(1), Le(64), AfterValidator(checks.shareable_ports)] = Field(
        1,
        alias="BILLING_GRPC_WORKERS",
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
    blocked_keys: Annotated[NameSet, AfterValidator(checks.catalogue_loads)] = Field(
        NameSet.AGENTS,
        alias="BILLING_GRPC_BLOCKED_KEYS",
        description="the set of vendor names that is blocked and stripped: core, agents, vendors (docs/catalogue.md)",
        validate_default=True,
    )
    extra_blocked_keys: Annotated[CommaSeparated, AfterValidator(checks.names_of_keys)] = Field(
        (), alias="BILLING_GRPC_EXTRA_BLOCKED_KEYS", description="comma-separated names added to that set"
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
    traces_endpoint: Annotated[CollectorUrl, AfterValidator(checks.traces_extra)] = Field(
        None,
        alias="BILLING_GRPC_TRACES_ENDPOINT",
        description="the OTLP/HTTP collector's URL for traces, as in http://127.0.0.1:4318/v1/traces; unset: traces are off",
    )
    traces_sample: Share = Field(
        1.0,
        alias="BILLING_GRPC_TRACES_SAMPLE",
        description="the share of traces to record, 0 to 1; a call within a trace is recorded if its caller's span is",
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
