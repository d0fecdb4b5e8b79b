"""Read the environment for the commands that ask a server.

Separate from the server's `settings.config`, which loads the database driver and would triple the start-up time of a call.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from billing_grpc.setting_names import VARIABLES

_VERBOSITY: Final = "GRPC_VERBOSITY"
_LOCALE: Final = b"LC_CTYPE="


def load_client_settings() -> dict[str, str | list[str]]:
    """Return the options that the environment sets, as text by option name; an empty variable counts as unset."""
    given: dict[str, str | list[str]] = {
        option: text for option, variable in VARIABLES.items() if (text := os.environ.get(variable, ""))
    }
    keys = given.get("extra_blocked_key")
    if isinstance(keys, str):
        given["extra_blocked_key"] = [name for part in keys.split(",") if (name := part.strip())]
    return given


def process_environment() -> dict[str, str]:
    """Return the environment that this process was started with, decoded as UTF-8 with surrogate escapes in every locale.

    In the locale's encoding, a byte could become a non-ASCII space, which hides a vendor key from code that trims names.
    Python itself sets LC_CTYPE if the locale is C; on Linux, the kernel shows the original value.
    """
    # A variable without a name can be inherited, but not passed to a new program.
    environment = {_text(name): _text(value) for name, value in os.environb.items() if name}
    try:
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return environment
    locale = [_text(each.removeprefix(_LOCALE)) for each in given if each.startswith(_LOCALE)]
    environment.pop("LC_CTYPE", None)
    if locale:
        environment["LC_CTYPE"] = locale[0]
    return environment


def environment_bytes(environment: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return an environment of `process_environment` as bytes."""
    return {_bytes(name): _bytes(value) for name, value in environment.items()}


def _text(given: bytes) -> str:
    return given.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def quieten_grpc() -> None:
    """Silence gRPC's core on standard error, unless GRPC_VERBOSITY is set. Call it before gRPC is loaded.

    gRPC writes a line for every failed handshake, and its threads wait if the reader is stuck.
    Only C code sees this variable: `process_environment` does not change.
    """
    if _VERBOSITY not in os.environ:
        os.putenv(_VERBOSITY, "NONE")
