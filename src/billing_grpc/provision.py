"""What to strip from a container's environment, and what to set in it. Pure (contract, section 5)."""

from collections.abc import Iterable, Mapping
from typing import Final

from billing_grpc.model import BillingMode, ProvisionPlan, Resolution
from billing_grpc.secrets import KeyList, normalise

MODE_VARIABLES: Final = ("MOLECULE_LLM_BILLING_MODE", "MOLECULE_LLM_BILLING_MODE_RESOLVED")
"""Set in every container to the resolved mode's text, so that no stale or forged value survives."""


def plan(resolution: Resolution, keys: KeyList, env_keys: Iterable[str] = ()) -> ProvisionPlan:
    """The plan that follows from a resolution.

    Args:
        resolution: who pays.
        keys: the vendor keys.
        env_keys: names present in the environment; those that spell a vendor key differently are stripped as spelt, and
            those that cannot be one are ignored.

    Returns:
        The plan. It strips only under `platform_managed`, whether or not a proxy is configured.
    """
    closed = resolution.mode not in {BillingMode.BYOK, BillingMode.DISABLED}
    strip: set[str] = set()
    if closed:
        strip.update(keys.names)
        strip.update(key for key in env_keys if (name := normalise(key)) is not None and keys.needs_mode(name))
    return ProvisionPlan(
        resolution=resolution,
        strip_keys=tuple(sorted(strip)),
        set_env=dict.fromkeys(MODE_VARIABLES, resolution.mode.value),
        route_via_platform_proxy=closed,
    )


def apply(plan: ProvisionPlan, env: Mapping[str, str]) -> dict[str, str]:
    """The environment to start a container with.

    Args:
        plan: what to strip and what to set; a closed one when the service could not be asked.
        env: the environment as it would be without the plan; not changed.

    Returns:
        `env` in its order, without every variable whose name is a spelling of a stripped one, whatever its case and the
        space around it, and with what the plan sets. All else is as it was, character for character.
    """
    spelt = set(plan.strip_keys)
    names = {name for key in plan.strip_keys if (name := normalise(key)) is not None}
    kept = {key: value for key, value in env.items() if key not in spelt and normalise(key) not in names}
    return kept | plan.set_env
