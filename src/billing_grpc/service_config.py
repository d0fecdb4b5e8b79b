"""The retry and timeout policy of the contract, for channels in Python.

Every method may be retried: it is a read, or a write that changes and records nothing when it is repeated. Clients in other
languages load the same file, `service_config.json` beside the contract.
"""

import json
from functools import cache
from pathlib import Path
from typing import Final

_NAME: Final = "service_config.json"


@cache
def load() -> str:
    """Return the policy as JSON, in the form of the channel option `grpc.service_config`."""
    packaged = Path(__file__).with_name(_NAME)
    in_checkout = Path(__file__).parents[2] / "proto" / "molecule" / "billing" / "v1" / _NAME
    text = (packaged if packaged.is_file() else in_checkout).read_text(encoding="utf-8")
    return json.dumps(json.loads(text))


def channel_options() -> list[tuple[str, str | int]]:
    """Return the options of a channel that retries as the policy says. Each call must pass its own `timeout`.

    The options hold no timeouts. With them, gRPC in Python ended three of a hundred first calls of a process at once with
    DEADLINE_EXCEEDED.
    """
    policy = json.loads(load())
    for entry in policy["methodConfig"]:
        del entry["timeout"]
    return [("grpc.service_config", json.dumps(policy)), ("grpc.enable_retries", 1)]


@cache
def timeout(method: str) -> float:
    """Return the policy's timeout of a method, in seconds.

    Args:
        method: the bare name of the method.

    Raises:
        KeyError: the policy does not list the method.
    """
    for entry in json.loads(load())["methodConfig"]:
        if any(name["method"] == method for name in entry["name"]):
            return float(entry["timeout"].removesuffix("s"))
    raise KeyError(method)
