"""What the command line takes from its environment when it asks a server; `config` is for those who are one.

Apart from `config`, because that loads the driver and TLS of a server, which would triple the start of a call.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

VARIABLES: Final = {
    "address": "BILLING_GRPC_ADDRESS",
    "token_file": "BILLING_GRPC_TOKEN_FILE",
    "ca": "BILLING_GRPC_CA",
    "cert": "BILLING_GRPC_CERT",
    "key": "BILLING_GRPC_KEY",
    "server_name": "BILLING_GRPC_SERVER_NAME",
    "timeout": "BILLING_GRPC_TIMEOUT",
    "extra_blocked_key": "BILLING_GRPC_EXTRA_BLOCKED_KEYS",
}
"""The variable of each option that says where to ask and how; the last is comma-separated, and the server's too."""

_PREFIX: Final = "BILLING_GRPC_"
_OF_A_KUBERNETES_SERVICE: Final = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?$")
_KUBERNETES_PORT: Final = re.compile(r"[a-z]+://\S+:\d+$")

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


def other_settings() -> list[str]:
    """The variables named like a setting of this program that are none of a call's, whatever the case of their letters.

    Without those that Kubernetes sets in every container for a service whose name begins with `billing-grpc`.
    """
    return sorted(
        name
        for name, value in os.environ.items()
        if name.upper().startswith(_PREFIX) and name not in VARIABLES.values() and not _is_a_service(name, value)
    )


def _is_a_service(name: str, value: str) -> bool:
    # `..._PORT` alone could be a setting by its name, and holds an address like tcp://10.0.0.1:50051.
    rest = name.removeprefix(_PREFIX.removesuffix("_"))
    return _OF_A_KUBERNETES_SERVICE.search(rest) is not None or (
        rest.endswith("_PORT") and _KUBERNETES_PORT.match(value) is not None
    )


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


def as_given(environment: Mapping[str, str]) -> dict[bytes, bytes]:
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
