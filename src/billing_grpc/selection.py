"""Select the workspaces of a list and summarise all workspaces, by the rule of `resolver`. Pure.

A resolution depends on nothing of a workspace but its override, and every unrecognised text resolves as every other. So a
filter is a set of kinds of overrides, and storage can skip the other workspaces without knowing the rule.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from billing_grpc.errors import FieldViolation, InvalidArgument, ValueUnreadable
from billing_grpc.model import (
    BillingMode,
    BillingModeSource,
    BillingModeSummary,
    ModeCount,
    ModeMove,
    OverrideCounts,
    OverrideFilter,
    OverrideKinds,
    ResolutionError,
    StoredOverride,
)
from billing_grpc.resolver import CLOSED, recognise_org_default, recognise_override, resolve

UNREADABLE: Final = ResolutionError(ValueUnreadable.reason, ValueUnreadable.public_message)
"""Why one row of a list has no override that could be read."""

UNRECOGNISED: Final = StoredOverride("")
"""Stands for every text that is not a mode."""
_INHERITS: Final = StoredOverride(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which workspaces a list shows. Every filter narrows it.

    Attributes:
        org_default: the organisation's default that is published now; None if unset.
        supposed: the default to suppose instead; None for no what-if.
        mode: only workspaces that resolve to this mode; None for all.
        source: only workspaces whose mode this rule decides; None for all.
        override: only workspaces for which this is stored; None for all.
        would_change: only workspaces whose mode is another under `supposed` than now.

    Raises:
        InvalidArgument: FILTER_INVALID if `would_change` has nothing to suppose.
    """

    org_default: str | None
    supposed: str | None = None
    mode: BillingMode | None = None
    source: BillingModeSource | None = None
    override: OverrideFilter | None = None
    would_change: bool = False

    def __post_init__(self) -> None:
        if self.would_change and self.supposed is None:
            problem = "compares with an org default to suppose: send org_default too"
            raise InvalidArgument("FILTER_INVALID", FieldViolation("would_change", problem))

    @property
    def used_default(self) -> str | None:
        """Return the org default by which the workspaces of the list are resolved."""
        return self.org_default if self.supposed is None else self.supposed

    def shows(self, override: StoredOverride | ResolutionError) -> bool:
        """Return whether the list shows a workspace with this override."""
        text = override.text if isinstance(override, StoredOverride) else ""
        if self.override is not None and text is None:
            return False
        if self.override is OverrideFilter.UNRECOGNISED and recognise_override(text) is not None:
            return False
        resolution = resolve("", override, self.used_default)
        if self.would_change and resolution.mode is resolve("", override, self.org_default).mode:
            return False
        return self.mode in {None, resolution.mode} and self.source in {None, resolution.source}

    @property
    def kinds(self) -> OverrideKinds:
        """Return the kinds of overrides that may be shown. Storage may skip all others."""
        return OverrideKinds(
            inheriting=self.shows(_INHERITS),
            modes=frozenset(mode for mode in BillingMode if self.shows(StoredOverride(mode.value))),
            unrecognised=self.shows(UNRECOGNISED) or self.shows(UNREADABLE),
        )


def summarise(stored: OverrideCounts, org_default: str | None, supposed: str | None) -> BillingModeSummary:
    """Return how many workspaces have which mode.

    Args:
        stored: how many workspaces have which override.
        org_default: the organisation's default as published, untrimmed; None if unset.
        supposed: the default whose moves to count; None for no what-if.
    """
    counts: Counter[tuple[BillingMode, BillingModeSource]] = Counter()
    moves: Counter[tuple[BillingMode, BillingMode]] = Counter()
    unrecognised = 0
    for override, workspaces in stored.workspaces.items():
        now = resolve("", override, org_default)
        counts[now.mode, now.source] += workspaces
        if isinstance(override, ResolutionError) or (
            override.text is not None and recognise_override(override.text) is None
        ):
            unrecognised += workspaces
        if supposed is not None and (then := resolve("", override, supposed)).mode is not now.mode:
            moves[now.mode, then.mode] += workspaces
    return BillingModeSummary(
        counts=tuple(
            ModeCount(mode, source, counts[mode, source])
            for mode in BillingMode
            for source in BillingModeSource
            if counts[mode, source]
        ),
        unrecognised_overrides=unrecognised,
        org_default=recognise_org_default(org_default) or CLOSED,
        read_time=stored.read_time,
        moves=tuple(ModeMove(before, after, workspaces) for (before, after), workspaces in sorted(moves.items())),
    )
