"""What to strip from a container's environment, and what to set in it. Pure (contract, section 5)."""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

from billing_grpc.model import OPEN_MODES, ProvisionPlan, Resolution
from billing_grpc.secret_keys import KeyList, names_in, normalise

MODE_VARIABLES: Final = ("MOLECULE_LLM_BILLING_MODE", "MOLECULE_LLM_BILLING_MODE_RESOLVED")
"""Set in every container to the resolved mode's text, so that no stale or forged value survives."""

# Control characters, and the two separators at which some loaders of environment files end a line.
_IN_NO_NAME: Final = frozenset({"Cc", "Zl", "Zp"})


def plan(
    resolution: Resolution, keys: KeyList, env_keys: Iterable[str] = (), *, also_strip: Iterable[str] = ()
) -> ProvisionPlan:
    """The plan that follows from a resolution.

    Args:
        resolution: who pays.
        keys: the vendor keys.
        env_keys: names present in the environment; those that spell or hold a vendor key are stripped as spelt, and the
            others are ignored.
        also_strip: names to strip that another list holds, as a server's does for its client.

    Returns:
        The plan. It strips only under `platform_managed`, whether or not a proxy is configured.
    """
    closed = resolution.mode not in OPEN_MODES
    strip: set[str] = set()
    if closed:
        theirs = set(also_strip)
        every = KeyList({*keys.names, *(name for key in theirs if (name := normalise(key)) is not None)})
        strip = {*keys.names, *theirs, *filter(every.holds, env_keys)}
    return ProvisionPlan(
        resolution=resolution,
        strip_keys=tuple(sorted(strip)),
        set_env=dict.fromkeys(MODE_VARIABLES, resolution.mode.value),
        route_via_platform_proxy=closed,
    )


def removed(plan: ProvisionPlan, variables: Iterable[str]) -> set[str]:
    """Which of these variables a plan takes out of an environment.

    Args:
        plan: what to strip.
        variables: their names.

    Returns:
        Those that are, or that a program could take for, a name to strip; under a closed plan also what can be no
        variable's name; and in every mode every spelling of the mode's own variables, which `apply` sets anew.
    """
    spelt, closed = set(plan.strip_keys), plan.resolution.mode not in OPEN_MODES
    names = {*MODE_VARIABLES, *(name for key in spelt if (name := normalise(key)) is not None)}
    return {
        each
        for each in variables
        if each in spelt or not names.isdisjoint(names_in(each)) or (closed and not can_be_variable(each))
    }


def apply(plan: ProvisionPlan, env: Mapping[str, str]) -> dict[str, str]:
    """The environment to start a container with.

    Args:
        plan: what to strip and what to set; a closed one when the service could not be asked.
        env: the environment as it would be without the plan; not changed.

    Returns:
        `env` in its order without what is `removed`, and with what the plan sets. All else is as it was, character for
        character.
    """
    gone = removed(plan, env)
    return {key: value for key, value in env.items() if key not in gone} | plan.set_env


def can_be_variable(name: str) -> bool:
    """Whether a name means one variable to every program that is handed it.

    Joined to `NAME=value`, a name with `=` is another variable; a NUL or a line's end begins a new one.
    """
    return bool(name) and "=" not in name and not any(unicodedata.category(c) in _IN_NO_NAME for c in name)
