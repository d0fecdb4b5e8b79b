"""The names of this program's settings in an environment; this module reads no environment."""

import re
from collections.abc import Mapping
from typing import Final

VARIABLES: Final = {
    "address": "BILLING_GRPC_ADDRESS",
    "token_file": "BILLING_GRPC_TOKEN_FILE",
    "ca": "BILLING_GRPC_CA",
    "cert": "BILLING_GRPC_CERT",
    "key": "BILLING_GRPC_KEY",
    "server_name": "BILLING_GRPC_SERVER_NAME",
    "timeout": "BILLING_GRPC_TIMEOUT",
    "blocked_keys": "BILLING_GRPC_BLOCKED_KEYS",
    "extra_blocked_key": "BILLING_GRPC_EXTRA_BLOCKED_KEYS",
}
"""The variable of each option of a call; the last two are also settings of the server, and the last is comma-separated."""

_PREFIX: Final = "BILLING_GRPC_"
_OF_A_KUBERNETES_SERVICE: Final = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?$")
_KUBERNETES_PORT: Final = re.compile(r"[a-z]+://\S+:\d+$")


def other_settings(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that are named like a setting of this program, in any case, and are not one of a call.

    The variables that Kubernetes sets in every container for a service whose name begins with `billing-grpc` are left out.
    """
    return sorted(
        name
        for name, value in environment.items()
        if name.upper().startswith(_PREFIX) and name not in VARIABLES.values() and not _is_a_service(name, value)
    )


def _is_a_service(name: str, value: str) -> bool:
    # `..._PORT` alone could be a setting by its name, and holds an address like tcp://10.0.0.1:50051.
    rest = name.removeprefix(_PREFIX.removesuffix("_"))
    return _OF_A_KUBERNETES_SERVICE.search(rest) is not None or (
        rest.endswith("_PORT") and _KUBERNETES_PORT.match(value) is not None
    )
