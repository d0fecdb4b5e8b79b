"""The settings: read once from flags and the environment, every problem reported at once.

The only module that reads the environment. Nothing here is a decision about billing: the org default is handed on as text
and interpreted by the resolver.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from billing_grpc.addresses import Address, TcpAddress, parse, parse_tcp
from billing_grpc.errors import SettingsError
from billing_grpc.secrets import RESERVED_PREFIX, is_reserved, normalise

_MAX_STORAGE_TIMEOUT: Final = 60


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _switch(value: object) -> object:
    match value:
        case "on":
            return True
        case "off":
            return False
        case bool():
            return value
        case _:
            raise ValueError("must be on or off")


def _addresses(value: object) -> object:
    return tuple(parse(part) for part in value) if isinstance(value, list) else value


def _metrics_address(value: object) -> object:
    if value == "off":
        return None
    return parse_tcp(value) if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


Switch = Annotated[bool, BeforeValidator(_switch)]


class DatabaseSettings(BaseSettings):
    """Which database: all that `billing-grpc migrate` needs."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, hide_input_in_errors=True, case_sensitive=True, extra="ignore"
    )

    database_url: SecretStr | None = Field(
        None, alias="DATABASE_URL", description="the Postgres to use; unset: embedded, under local admin only"
    )

    @field_validator("database_url")
    @classmethod
    def _is_a_postgres_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            text = value.get_secret_value()
            if not text.startswith(("postgresql://", "postgres://")) and "=" not in text:
                raise ValueError("must be postgresql://... or a libpq keyword string such as host=... dbname=...")
        return value


class Settings(DatabaseSettings):
    """All settings of `billing-grpc serve`.

    Fields stand in the order in which they are checked: one that looks at another stands after it.
    """

    local_admin: Switch = Field(
        False,  # noqa: FBT003 - pydantic's way to state a default
        alias="BILLING_GRPC_LOCAL_ADMIN",
        description="on: whoever reaches loopback or a Unix socket is admin; for a laptop only",
        validate_default=True,
    )
    org_default: str | None = Field(
        None, alias="MOLECULE_LLM_BILLING_MODE", description="the organisation's default mode; unset: closed"
    )
    org_default_file: Path | None = Field(
        None,
        alias="MOLECULE_LLM_BILLING_MODE_FILE",
        description="a file that holds the organisation's default mode; re-read on change and on SIGHUP",
    )
    listen: Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_addresses), BeforeValidator(_comma_separated)] = (
        Field(
            (TcpAddress("127.0.0.1", 50051),),
            alias="BILLING_GRPC_LISTEN",
            description="comma-separated: host:port, unix:/path",
        )
    )
    storage_timeout: float = Field(
        1.0,
        alias="BILLING_GRPC_STORAGE_TIMEOUT",
        gt=0,
        le=_MAX_STORAGE_TIMEOUT,
        allow_inf_nan=False,
        description="seconds of storage a call may use",
    )
    extra_blocked_keys: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)] = Field(
        (), alias="BILLING_GRPC_EXTRA_BLOCKED_KEYS", description="comma-separated names added to the vendor keys"
    )
    reflection: Switch = Field(
        True,  # noqa: FBT003 - pydantic's way to state a default
        alias="BILLING_GRPC_REFLECTION",
        description="whether the contract can be listed over the wire: on, off",
    )
    metrics_listen: Annotated[TcpAddress | None, NoDecode, BeforeValidator(_metrics_address)] = Field(
        TcpAddress("127.0.0.1", 9464),
        alias="BILLING_GRPC_METRICS_LISTEN",
        description="host:port of the metrics, or off",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", alias="BILLING_GRPC_LOG_FORMAT", description="console, json; auto: console on a terminal, else json"
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = Field(
        "INFO", alias="BILLING_GRPC_LOG_LEVEL", description="DEBUG, INFO, WARNING, ERROR"
    )
    data_dir: Path | None = Field(
        None,
        alias="BILLING_GRPC_DATA_DIR",
        description="where the embedded database lives; unset: the user's state folder",
    )

    @field_validator("local_admin")
    @classmethod
    def _somebody_may_call(cls, value: bool) -> bool:  # noqa: FBT001 - pydantic calls it
        if not value:
            raise ValueError(
                "nobody could call this server: tokens and client certificates are not available in this version, so it"
                " starts only with BILLING_GRPC_LOCAL_ADMIN=on, on loopback and Unix sockets"
            )
        return value

    @field_validator("org_default_file")
    @classmethod
    def _one_org_default(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("org_default") is not None:
            raise ValueError("set this or MOLECULE_LLM_BILLING_MODE, not both")
        return value

    @field_validator("listen")
    @classmethod
    def _only_this_machine(cls, value: tuple[Address, ...]) -> tuple[Address, ...]:
        if not value:
            raise ValueError("name at least one address, as in 127.0.0.1:50051")
        open_to_others = [str(each) for each in value if isinstance(each, TcpAddress) and not each.is_loopback]
        if open_to_others:
            raise ValueError(
                f"under BILLING_GRPC_LOCAL_ADMIN=on whoever reaches the server is admin, so {', '.join(open_to_others)} is"
                " refused: use a loopback address or unix:/path"
            )
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
    """The settings of `serve`; a flag, given by its setting's name, wins over the environment.

    Raises:
        SettingsError: one sentence for every setting that is wrong.
    """
    try:
        return Settings(**_given(flags))
    except ValidationError as error:
        raise SettingsError(_problems(error)) from error


def load_database_url(flag: str | None) -> str:
    """The database that `migrate` works on.

    Raises:
        SettingsError: none is configured, or it is not a Postgres.
    """
    try:
        url = DatabaseSettings(**_given({"DATABASE_URL": flag})).database_url
    except ValidationError as error:
        raise SettingsError(_problems(error)) from error
    if url is None:
        raise SettingsError(["DATABASE_URL: name the Postgres to migrate; there is no default"])
    return url.get_secret_value()


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value not in {None, ""}}


def _problems(error: ValidationError) -> list[str]:
    return [
        f"{problem['loc'][0] if problem['loc'] else 'settings'}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
