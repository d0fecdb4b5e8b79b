"""The retry and timeout policy that ships with the contract, for channels made in Python.

Every method is a read or safe to repeat: setting what is already set changes nothing and records nothing. Other languages
load the same file, `service_config.json` beside the contract.
"""

import json
from functools import cache
from pathlib import Path
from typing import Final

_NAME: Final = "service_config.json"


@cache
def load() -> str:
    """The policy as JSON, as the channel option `grpc.service_config` takes it."""
    packaged = Path(__file__).with_name(_NAME)
    in_checkout = Path(__file__).parents[2] / "proto" / "molecule" / "billing" / "v1" / _NAME
    text = (packaged if packaged.is_file() else in_checkout).read_text(encoding="utf-8")
    return json.dumps(json.loads(text))


def channel_options() -> list[tuple[str, str | int]]:
    """Options for a channel that follows the policy's retries; its timeouts are for each call to give (`timeout`).

    Not by the channel: gRPC in Python ended three of a hundred first calls of a process at once with DEADLINE_EXCEEDED where
    the timeout came from the policy.
    """
    policy = json.loads(load())
    for entry in policy["methodConfig"]:
        del entry["timeout"]
    return [("grpc.service_config", json.dumps(policy)), ("grpc.enable_retries", 1)]


@cache
def timeout(method: str) -> float:
    """The policy's timeout of a method, given by its bare name, in seconds."""
    for entry in json.loads(load())["methodConfig"]:
        if any(name["method"] == method for name in entry["name"]):
            return float(entry["timeout"].removesuffix("s"))
    raise KeyError(method)
