"""The plan for a container's environment: the names to strip and the variables to set. Pure."""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

from billing_grpc.model import OPEN_MODES, ProvisionPlan, Resolution
from billing_grpc.secret_keys import KeyList, NameFinder, is_reserved, normalise

MODE_VARIABLES: Final = ("MOLECULE_LLM_BILLING_MODE", "MOLECULE_LLM_BILLING_MODE_RESOLVED")
"""Set in every container to the text of the resolved mode, so that a stale or forged value is replaced."""

# Control characters, and the two separators at which some loaders of environment files end a line.
_INVALID_CATEGORIES: Final = frozenset({"Cc", "Zl", "Zp"})


def plan(
    resolution: Resolution, keys: KeyList, env_keys: Iterable[str] | None = None, *, also_strip: Iterable[str] = ()
) -> ProvisionPlan:
    """Return the plan for a resolution.

    Args:
        resolution: the resolution that decides.
        keys: the vendor keys.
        env_keys: names present in the environment; None if they are not known.
        also_strip: further names to strip, such as the names in a server's answer.

    Returns:
        The plan. It strips only under `platform_managed`, whether or not a proxy is configured. With `env_keys` it strips
        those from which a program could read a vendor key, as they are spelt; without, every key. It has no suspects.
    """
    closed = resolution.mode not in OPEN_MODES
    strip: Iterable[str] = ()
    blocked: frozenset[str] = frozenset()
    if closed:
        further = set(also_strip)
        names = {name for key in further if (name := normalise(key)) is not None and not is_reserved(name)}
        blocked = keys.names | names
        if env_keys is None:
            strip = keys.names | further
        else:
            holds = NameFinder(blocked).holds if names else keys.holds
            strip = {each for each in env_keys if each in further or holds(each)}
    return ProvisionPlan(
        resolution=resolution,
        strip_keys=tuple(sorted(strip)),
        set_env=dict.fromkeys(MODE_VARIABLES, resolution.mode.value),
        route_via_platform_proxy=closed,
        catalogue=keys.catalogue,
        blocked=blocked,
    )


def removed(plan: ProvisionPlan, variables: Iterable[str]) -> set[str]:
    """Return the variables that a plan removes from an environment.

    Args:
        plan: the plan.
        variables: the names of the environment's variables.

    Returns:
        The names from which a program could read a name to strip, or one of `MODE_VARIABLES`, which `apply` sets again.
        Under `platform_managed` also those from which it could read a name of `plan.blocked`, and the names that are not
        valid for a variable.
    """
    spelt, closed = set(plan.strip_keys), plan.resolution.mode not in OPEN_MODES
    names = {*MODE_VARIABLES, *(name for key in spelt if (name := normalise(key)) is not None)}
    if closed:
        names |= KeyList().names if plan.blocked is None else plan.blocked
    finder = NameFinder(names)
    return {each for each in variables if each in spelt or finder.holds(each) or (closed and not can_be_variable(each))}


def apply(plan: ProvisionPlan, env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment to start a container with.

    Args:
        plan: the plan; a fallback if the service could not be asked.
        env: the environment without the plan; not changed.

    Returns:
        `env` in its order, without the `removed` variables and with those of `set_env`. All others are unchanged.
    """
    gone = removed(plan, env)
    return {key: value for key, value in env.items() if key not in gone} | plan.set_env


def can_be_variable(name: str) -> bool:
    """Return whether every program reads this name as the name of one variable.

    In `NAME=value`, a name with `=` is read as another name, and a NUL or the end of a line begins another variable.
    """
    return bool(name) and "=" not in name and not any(unicodedata.category(c) in _INVALID_CATEGORIES for c in name)
