"""Lists of workspaces, which overrides they show, and summaries of how many workspaces have which mode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from billing_grpc.model.modes import BillingMode, BillingModeSource, ResolutionError
from billing_grpc.model.records import StoredOverride, WorkspaceRecord


class OverrideFilter(StrEnum):
    """Which workspaces a list shows by what is stored for them."""

    PRESENT = "present"
    UNRECOGNISED = "unrecognised"


@dataclass(frozen=True, slots=True)
class OverrideKinds:
    """The kinds of overrides that a list may show.

    Attributes:
        inheriting: workspaces without an override.
        modes: workspaces whose override is one of these modes.
        unrecognised: workspaces whose override is another text, or cannot be read.
    """

    inheriting: bool = True
    modes: frozenset[BillingMode] = frozenset(BillingMode)
    unrecognised: bool = True

    def hold(self, mode: BillingMode | None, text: str | None) -> bool:
        """Return whether an override is of these kinds, by its stored text and the mode that this is, if any."""
        if text is None:
            return self.inheriting
        return self.unrecognised if mode is None else mode in self.modes

    @property
    def everything(self) -> bool:
        """Return whether no workspace is to be skipped."""
        return self.inheriting and self.unrecognised and self.modes == frozenset(BillingMode)


@dataclass(frozen=True, slots=True)
class ListedWorkspace:
    """A workspace of a list.

    Attributes:
        workspace_id: canonical, lower case.
        record: the override and the last log entry. If the override cannot be read, it holds what can be shown of it.
        name: the workspace's name, cut to 256 characters; empty without one.
        error: why the override cannot be read; None if it was read.
    """

    workspace_id: str
    record: WorkspaceRecord
    name: str = ""
    error: ResolutionError | None = None

    @property
    def override(self) -> StoredOverride | ResolutionError:
        """Return the override as the rule takes it."""
        return self.record.override if self.error is None else self.error


@dataclass(frozen=True, slots=True)
class WorkspacePage:
    """Some workspaces of a list.

    Attributes:
        workspaces: in the order of their ids.
        last: the id up to which workspaces were looked at; None if no workspace follows.
    """

    workspaces: Sequence[ListedWorkspace]
    last: str | None


@dataclass(frozen=True, slots=True)
class OverrideCounts:
    """How many workspaces have which override, as of one moment.

    Attributes:
        workspaces: the number of workspaces by override, never 0. Storage may count all unrecognised texts as one of them.
            Overrides that cannot be read are counted under their error.
        read_time: the moment, with time zone.
    """

    workspaces: Mapping[StoredOverride | ResolutionError, int]
    read_time: datetime


@dataclass(frozen=True, slots=True)
class ModeCount:
    """How many workspaces resolve to one mode by one rule.

    Attributes:
        mode: the mode.
        source: the rule that decides.
        workspaces: how many.
    """

    mode: BillingMode
    source: BillingModeSource
    workspaces: int


@dataclass(frozen=True, slots=True)
class ModeMove:
    """How many workspaces would go from one mode to another.

    Attributes:
        from_mode: the mode now.
        to_mode: the mode that it would be.
        workspaces: how many.
    """

    from_mode: BillingMode
    to_mode: BillingMode
    workspaces: int


@dataclass(frozen=True, slots=True)
class BillingModeSummary:
    """How many workspaces have which mode, as of one moment.

    Attributes:
        counts: by mode and source, in the order of the enums; together all workspaces.
        unrecognised_overrides: how many workspaces have an override that is not a mode, or cannot be read.
        org_default: the organisation's default as used for the counts; `platform_managed` if it is unset or unrecognised.
        read_time: the moment, with time zone.
        moves: what the supposed org default would change; empty without one.
    """

    counts: tuple[ModeCount, ...]
    unrecognised_overrides: int
    org_default: BillingMode
    read_time: datetime
    moves: tuple[ModeMove, ...] = ()

    @property
    def workspaces(self) -> int:
        """Return the number of all workspaces."""
        return sum(each.workspaces for each in self.counts)
