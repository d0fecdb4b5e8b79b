"""The types of settings: each parses a text, or raises an error of one sentence that names what it accepts."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Le
from pydantic import AfterValidator, AllowInfNan, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from billing_grpc.addresses import Address, TcpAddress, parse, parse_tcp


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
    if not isinstance(value, list):
        return value
    parsed, problems = [], []
    for part in value:
        try:
            parsed.append(parse(part))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(parsed)


def _metrics_address(value: object) -> object:
    if value == "off":
        return None
    return parse_tcp(value) if isinstance(value, str) else value


def _file_mode(value: object) -> object:
    if isinstance(value, str):
        if not re.fullmatch(r"0?[0-7]{3}", value):
            raise ValueError("must be a file mode in octal, as in 0660")
        return int(value, 8)
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


Count = Annotated[int, Ge(1), Le(1_000_000)]
Switch = Annotated[bool, BeforeValidator(_switch)]
# gRPC counts milliseconds in 32 bits, which is 24 days and a half.
Seconds = Annotated[float, Ge(0.1), Le(86_400 * 24), AllowInfNan(allow_inf_nan=False)]


def _postgres_address(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        text = value.get_secret_value()
        if not text.startswith(("postgresql://", "postgres://")) and "=" not in text:
            raise ValueError("must be postgresql://... or a libpq keyword string such as host=... dbname=...")
    return value


def _collector(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        url = urlsplit(value)
        right = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        right = False
        url = urlsplit("")
    if not right:
        raise ValueError("must be the collector's URL for traces, as in http://127.0.0.1:4318/v1/traces")
    if url.username is not None or url.password is not None:
        raise ValueError("must not hold credentials; give them to the exporter in OTEL_EXPORTER_OTLP_TRACES_HEADERS")
    return value


CollectorUrl = Annotated[str | None, AfterValidator(_collector)]
Share = Annotated[float, Ge(0), Le(1), AllowInfNan(allow_inf_nan=False)]
DatabaseUrl = Annotated[SecretStr | None, AfterValidator(_postgres_address)]
Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_addresses), BeforeValidator(_comma_separated)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]
FileMode = Annotated[int, BeforeValidator(_file_mode)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
MetricsAddress = Annotated[TcpAddress | None, NoDecode, BeforeValidator(_metrics_address)]
