"""The conformance vectors as values: what a client is asked, what then happens, and what it must answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

METADATA_KEY: Final = "x-conformance-case"
"""The metadata by which a call names the case that it belongs to: the file's name without its ending, `/`, the case's."""

ASKING: Final = ("resolution", "secrets", "plan", "closed")
"""The files whose cases ask a server."""

DECISIONS: Final = ("ResolveBillingMode", "BatchResolveBillingModes", "ValidateSecretWrite", "PlanProvisionEnv")
"""The methods that a case may call."""

BEHAVIOURS: Final = ("state", "answer", "bytes", "status", "hang", "reset", "unreachable")
"""What a server may do in a case; each case has exactly one."""

_FOLDER: Final = "conformance"


@dataclass(frozen=True, slots=True)
class Case:
    """One case that asks a server.

    Attributes:
        id: file and name, as `METADATA_KEY` takes it.
        method: one of `DECISIONS`.
        request: the request, as proto JSON with the contract's field names.
        behaviour: what the server does, one of `BEHAVIOURS`.
        detail: the particulars of the behaviour: a state, an answer, bytes as hexadecimal text, a status, or True.
        expect: what a default-closed client must answer, in the texts of the contract's section 2.
        expect_server: what the server itself must answer where that differs: `{"status": {"code": ..., "reason": ...}}`, or
            `{"answer": ...}` as in `expect`.
        extra_blocked_keys: the names that the client was stopped to add to the list of vendor keys.
        timeout: the client's deadline in seconds; None for its usual one.
    """

    id: str
    method: str
    request: Mapping[str, Any]
    behaviour: str
    detail: Any
    expect: Any
    expect_server: Mapping[str, Any] | None
    extra_blocked_keys: tuple[str, ...]
    timeout: float | None


@dataclass(frozen=True, slots=True)
class ApplyCase:
    """A plan applied to an environment.

    Attributes:
        name: unique among these.
        mode: the mode that the plan was made for.
        strip_keys: the plan's names to remove.
        set_env: the plan's variables to set.
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
    """The names that a client must know without asking.

    Attributes:
        blocked_keys: the vendor keys.
        reserved_prefix: how names begin that belong to the platform.
    """

    blocked_keys: tuple[str, ...]
    reserved_prefix: str


def load() -> tuple[Case, ...]:
    """Every case that asks a server, in the order of the files."""
    return tuple(_case(stem, each) for stem in ASKING for each in _read(stem)["cases"])


def load_apply() -> tuple[ApplyCase, ...]:
    """Every case of `apply.json`."""
    return tuple(
        ApplyCase(
            name=each["name"],
            mode=each["plan"]["resolution"]["mode"],
            strip_keys=tuple(each["plan"]["strip_keys"]),
            set_env=each["plan"]["set_env"],
            env=each["env"],
            expect=each["expect"],
        )
        for each in _read("apply")["cases"]
    )


def load_key_names() -> KeyNames:
    """What `blocked_keys.json` says."""
    read = _read("blocked_keys")
    return KeyNames(tuple(read["blocked_keys"]), read["reserved_prefix"])


def matches(expected: Any, actual: Any) -> bool:
    """Whether an answer is the expected one; an `error` may be a list of reasons, any of which will do."""
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
        expect=raw["expect"],
        expect_server=raw.get("expect_server"),
        extra_blocked_keys=tuple(client.get("extra_blocked_keys", ())),
        timeout=client["timeout_ms"] / 1000 if "timeout_ms" in client else None,
    )


def _read(stem: str) -> Any:
    packaged = Path(__file__).parents[1] / f"_{_FOLDER}"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[3] / _FOLDER
    return json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
