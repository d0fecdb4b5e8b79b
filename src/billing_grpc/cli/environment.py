"""What the command line takes from its environment when it asks a server; `config` is for those who are one.

Apart from `config`, because that loads the driver and TLS of a server, which would triple the start of a call.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from billing_grpc.setting_names import VARIABLES

_VERBOSITY: Final = "GRPC_VERBOSITY"
_LOCALE: Final = b"LC_CTYPE="


def load_client_settings() -> dict[str, str | list[str]]:
    """The options that the environment gives, as text, by name; an empty variable is unset."""
    given: dict[str, str | list[str]] = {
        option: text for option, variable in VARIABLES.items() if (text := os.environ.get(variable, ""))
    }
    keys = given.get("extra_blocked_key")
    if isinstance(keys, str):
        given["extra_blocked_key"] = [name for part in keys.split(",") if (name := part.strip())]
    return given


def process_environment() -> dict[str, str]:
    """The environment that this process was given: UTF-8 in every locale, with surrogate escapes for bytes that are none.

    In the locale's own encoding a space that is no ASCII could hide a vendor key from whoever trims names.
    Python itself sets LC_CTYPE where the locale is C; on Linux, what was there before is told by the kernel.
    """
    # A variable without a name can be inherited and not be handed on.
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
    """The bytes of an environment of `process_environment`."""
    return {_bytes(name): _bytes(value) for name, value in environment.items()}


def _text(given: bytes) -> str:
    return given.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def quieten_grpc() -> None:
    """Keeps gRPC's core from writing to standard error, unless the caller asked it to; before gRPC is loaded.

    It writes a line for every handshake that fails, and its threads wait for a reader who stands still.
    Only its own C library sees this: `process_environment` stays what it was.
    """
    if _VERBOSITY not in os.environ:
        os.putenv(_VERBOSITY, "NONE")
