"""Check the address in `DATABASE_URL` and add our defaults to it."""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from billing_grpc.errors import SettingsError
from billing_grpc.storage.postgres.connecting import CONNECT_TIMEOUT

_DEFAULTS: Final[dict[str, str | int]] = {
    # These detect a lost peer, also while no query is running.
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 900,
    # Only the server that accepts writes is sure to hold current values.
    "target_session_attrs": "read-write",
}

# libpq checks these values only when it connects, and its error repeats them. In a misspelt address, such a value may be a
# part of the password. So the values are checked here first.
_TLS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_PROTOCOLS: Final = ("3.0", "3.2", "latest")
_CHOICES: Final = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "sslcertmode": ("disable", "allow", "require"),
    "gssencmode": ("disable", "prefer", "require"),
    "channel_binding": ("disable", "prefer", "require"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": ("disable", "random"),
    "ssl_min_protocol_version": _TLS,
    "ssl_max_protocol_version": _TLS,
    "min_protocol_version": _PROTOCOLS,
    "max_protocol_version": _PROTOCOLS,
}
_AUTHENTICATION: Final = frozenset({"password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none"})
_WHOLE_NUMBERS: Final = (
    *("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    "tcp_user_timeout",
)
_MAX_PORT: Final = 65_535


def parse_address(database_url: str) -> dict[str, Any]:
    """Return the parts of an address.

    Raises:
        SettingsError: libpq would not accept the address. The message repeats no part of it.
    """
    if _has_unescaped_at(database_url):
        raise SettingsError(["the user name or the password contains @ or /: write %40 and %2F instead"])
    try:
        parts = conninfo_to_dict(database_url)
    except psycopg.ProgrammingError:
        # The driver's text is left out, because it repeats the address with the password.
        raise SettingsError(
            ["libpq does not understand the address: write postgresql://user@host:port/database"]
        ) from None
    if problems := _problems(parts):
        raise SettingsError(problems)
    return parts


def _has_unescaped_at(address: str) -> bool:
    """Return whether libpq would take an unescaped @, for example in a password, as part of a host or database name."""
    scheme, separator, rest = address.partition("://")
    if not separator or scheme not in {"postgresql", "postgres"}:
        return False
    user, at, beyond = rest.partition("@")
    if at and "/" not in user:
        rest = beyond
    return "@" in rest.partition("?")[0]


def _problems(parts: Mapping[str, Any]) -> list[str]:
    given = {name: str(value) for name, value in parts.items() if value not in {None, ""}}
    # Environment variables such as PGSSLMODE, and libpq's own defaults.
    by_default = {
        each.keyword.decode(): (each.val or b"").decode("utf-8", "replace") for each in Conninfo.get_defaults()
    }
    values = {**by_default, **given}

    def named(name: str) -> str:
        return name if name in given else f"{name}, which the environment gives,"

    problems = [
        f"{named(name)} must be one of {', '.join(choices)}"
        for name, choices in _CHOICES.items()
        if values.get(name) and values[name] not in choices
    ]
    problems += [
        f"{named(name)} must be a whole number" for name in _WHOLE_NUMBERS if not _is_whole(values.get(name) or "0")
    ]
    methods = [each.strip().removeprefix("!") for each in (values.get("require_auth") or "").split(",") if each.strip()]
    if not _AUTHENTICATION.issuperset(methods):
        problems.append(f"{named('require_auth')} must be a list of {', '.join(sorted(_AUTHENTICATION))}")
    if not all(_is_ip_address(each) for each in (values.get("hostaddr") or "").split(",") if each):
        problems.append(f"{named('hostaddr')} must be an IP address, or several with commas between them")
    hosts, ports = (values["host"] or values["hostaddr"]).split(","), values["port"].split(",")
    if not all(_is_port(port) for port in ports):
        problems.append(f"{named('port')} must be a number from 1 to {_MAX_PORT}")
    if len(ports) not in {1, len(hosts)}:
        problems.append("name one port, or as many as there are hosts")
    return problems


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"\s*[+-]?[0-9]+\s*", text) is not None


def _is_ip_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_port(text: str) -> bool:
    return not text.strip() or (_is_whole(text) and 1 <= int(text) <= _MAX_PORT)


def complete_address(database_url: str, application_name: str) -> str:
    """Return the address with our defaults and this application name, unless it sets them itself.

    Raises:
        SettingsError: libpq would not accept the address.
    """
    return make_conninfo(**{**_DEFAULTS, "application_name": application_name, **parse_address(database_url)})
