"""Load the conformance vectors: what a client is asked, what the server does, and what the client must answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from billing_grpc.catalogue import NameSet

METADATA_KEY: Final = "x-conformance-case"
"""The metadata key by which a call names its case: the file's name without its extension, `/`, and the case's name."""

_SERVER_FILES: Final = ("resolution", "secrets", "plan", "closed")
"""The files with cases that ask a server."""

DECISIONS: Final = ("ResolveBillingMode", "BatchResolveBillingModes", "ValidateSecretWrite", "PlanProvisionEnv")
"""The methods that a case may call."""

BEHAVIOURS: Final = ("state", "answer", "bytes", "status", "hang", "reset", "unreachable")
"""What a server may do in a case; each case has exactly one."""

_FOLDER: Final = "conformance"


@dataclass(frozen=True, slots=True)
class Case:
    """One case that asks a server.

    Attributes:
        id: file and name, as the value of `METADATA_KEY`.
        method: one of `DECISIONS`.
        request: the request, as proto JSON with the contract's field names.
        behaviour: what the server does, one of `BEHAVIOURS`.
        detail: the argument of the behaviour: a state, an answer, bytes as hexadecimal text, a status, or `True`.
        expect: what a default-closed client must answer, in the texts of the contract.
        expect_server: what the server itself must answer if that differs: `{"status": {"code": ..., "reason": ...}}`, or
            `{"answer": ...}` as in `expect`.
        blocked_keys: the set of the catalogue that the client is configured with.
        extra_blocked_keys: the names that the client is configured to add to it.
        timeout: the client's timeout in seconds; `None` for its default.
    """

    id: str
    method: str
    request: Mapping[str, Any]
    behaviour: str
    detail: Any
    expect: Any
    expect_server: Mapping[str, Any] | None
    blocked_keys: str
    extra_blocked_keys: tuple[str, ...]
    timeout: float | None


@dataclass(frozen=True, slots=True)
class ApplyCase:
    """A case that applies a plan to an environment.

    Attributes:
        name: unique in its file.
        mode: the mode of the plan.
        strip_keys: the names that the plan removes.
        set_env: the variables that the plan sets.
        env: the environment before.
        expect: the environment after.
    """

    name: str
    mode: str
    strip_keys: tuple[str, ...]
    set_env: Mapping[str, str]
    env: Mapping[str, str]
    expect: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KeyNames:
    """The names that a client must know without a server.

    Attributes:
        version: the date of the catalogue.
        sets: the names that each set blocks, sorted.
        digests: the digest of each set.
        reserved_prefix: the prefix of the platform's own names.
        look_alikes: the characters that Windows replaces, by the ASCII character that replaces them.
    """

    version: str
    sets: Mapping[str, tuple[str, ...]]
    digests: Mapping[str, str]
    reserved_prefix: str
    look_alikes: Mapping[str, str]


def load() -> tuple[Case, ...]:
    """Return every case that asks a server, in the order of the files."""
    return tuple(_case(stem, each) for stem in _SERVER_FILES for each in _read(stem)["cases"])


def load_apply() -> tuple[ApplyCase, ...]:
    """Return every case of `apply.json`."""
    return tuple(
        ApplyCase(
            name=each["name"],
            mode=each["plan"]["resolution"]["mode"],
            strip_keys=tuple(_with_names(each["plan"])["strip_keys"]),
            set_env=each["plan"]["set_env"],
            env=each["env"],
            expect=each["expect"],
        )
        for each in _read("apply")["cases"]
    )


@cache
def load_key_names() -> KeyNames:
    """Return the names of `blocked_keys.json`."""
    read = _read("blocked_keys")
    sets = {name: tuple(names) for name, names in read["sets"].items()}
    return KeyNames(read["version"], sets, read["digests"], read["reserved_prefix"], read["look_alikes"])


def matches(expected: Any, actual: Any) -> bool:
    """Return whether an answer is the expected one; an expected `error` may be a list of accepted reasons."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(
            actual[name] in value if name == "error" and isinstance(value, list) else matches(value, actual[name])
            for name, value in expected.items()
        )
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(matches, expected, actual))
    return type(expected) is type(actual) and bool(expected == actual)


def _case(stem: str, raw: Mapping[str, Any]) -> Case:
    ((behaviour, detail),) = raw["server"].items()
    client = raw.get("client", {})
    return Case(
        id=f"{stem}/{raw['name']}",
        method=raw["method"],
        request=raw["request"],
        behaviour=behaviour,
        detail=detail,
        expect=_with_names(raw["expect"]),
        expect_server=_with_names(raw.get("expect_server")),
        blocked_keys=client.get("blocked_keys", NameSet.AGENTS),
        extra_blocked_keys=tuple(client.get("extra_blocked_keys", ())),
        timeout=client["timeout_ms"] / 1000 if "timeout_ms" in client else None,
    )


def _with_names(value: Any) -> Any:
    """Return an answer in which the names of a set stand for `@SET` in every `strip_keys`."""
    if isinstance(value, list):
        return [_with_names(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _names(each) if name == "strip_keys" and isinstance(each, list) else _with_names(each)
        for name, each in value.items()
    }


def _names(listed: Sequence[str]) -> list[str]:
    sets = load_key_names().sets
    found = {name for each in listed for name in (sets[each[1:]] if each.startswith("@") else (each,))}
    return sorted(found) if any(each.startswith("@") for each in listed) else list(listed)


def _read(stem: str) -> Any:
    packaged = Path(__file__).parents[1] / f"_{_FOLDER}"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[3] / _FOLDER
    return json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
