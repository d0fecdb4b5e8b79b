"""What is written in `DATABASE_URL`, and what we add to it."""

from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from billing_grpc.errors import SettingsError
from billing_grpc.postgres.connection import CONNECT_TIMEOUT

_DEFAULTS: Final[dict[str, str | int]] = {
    # What the network may hide: a peer that vanished is noticed within these bounds even while nobody waits for it.
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 900,
    # Of several hosts, the one that accepts writes: every other may hold old values.
    "target_session_attrs": "read-write",
}


def parse_address(database_url: str) -> dict[str, Any]:
    """The parts of an address.

    Raises:
        SettingsError: libpq does not understand it.
    """
    try:
        return conninfo_to_dict(database_url)
    except psycopg.ProgrammingError:
        # Without the driver's text, which repeats the address and the password in it.
        raise SettingsError(["not a Postgres address that libpq understands"]) from None


def complete_address(database_url: str, application_name: str) -> str:
    """The same address with our defaults and this name, where it does not bring its own.

    Raises:
        SettingsError: libpq does not understand it.
    """
    return make_conninfo(**{**_DEFAULTS, "application_name": application_name, **parse_address(database_url)})
