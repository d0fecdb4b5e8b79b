"""The values of the service: frozen dataclasses and enums of the standard library. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Final, Generic, Self, TypeVar


class BillingMode(StrEnum):
    """The billing mode: who pays for a workspace's language-model calls. The value is the stored and logged text."""

    PLATFORM_MANAGED = "platform_managed"
    BYOK = "byok"
    DISABLED = "disabled"


OPEN_MODES: Final = frozenset({BillingMode.BYOK, BillingMode.DISABLED})
"""The modes in which vendor keys are kept and may be stored; every other value is treated as `platform_managed`."""

ChangeId = TypeVar("ChangeId", int, str)


class BillingModeSource(StrEnum):
    """Which rule of `workspace override ?? org default ?? platform_managed` decided."""

    WORKSPACE_OVERRIDE = "workspace_override"
    ORG_DEFAULT = "org_default"
    CONSTANT_FALLBACK = "constant_fallback"


class OverrideFilter(StrEnum):
    """Which workspaces a list shows by what is stored for them."""

    PRESENT = "present"
    UNRECOGNISED = "unrecognised"


class ChangeKind(StrEnum):
    """What a recorded change changed."""

    WORKSPACE = "workspace"
    ORG_DEFAULT = "org_default"


class SecretVerdict(StrEnum):
    """Whether a secret may be written under a key name."""

    ALLOWED = "allowed"
    BLOCKED_PLATFORM_MANAGED = "blocked_platform_managed"
    BLOCKED_RESERVED = "blocked_reserved"


@dataclass(frozen=True, slots=True)
class StoredOverride:
    """What storage holds for a workspace.

    Attributes:
        text: the stored text, cut to 256 characters, recognised or not; None if the workspace inherits or does not exist.
        exists: whether the workspace exists.
    """

    text: str | None
    exists: bool = True


NO_WORKSPACE = StoredOverride(text=None, exists=False)


@dataclass(frozen=True, slots=True)
class ResolutionError:
    """Why an override could not be read.

    Attributes:
        reason: one of the six UPPER_SNAKE storage reasons of the contract.
        message: a sentence for the operator, without driver text, SQL and hosts.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """The billing mode in force for a workspace, and what decided it.

    Attributes:
        workspace_id: canonical, lower case; empty for a new workspace and for the whole organisation.
        mode: the resolved mode.
        source: the rule that decided.
        workspace_override: the stored text, also if it is not a recognised mode; None if nothing is stored.
        org_default: the organisation's default as used; `platform_managed` if it is unset or unrecognised.
        reason: a sentence for the operator.
        error: why the override could not be read, in which case `mode` is `platform_managed`; None if it was read.
    """

    workspace_id: str
    mode: BillingMode
    source: BillingModeSource
    workspace_override: str | None
    org_default: BillingMode
    reason: str
    error: ResolutionError | None = None


def author(principal: str, database_user: str) -> str:
    """Return the author of a change: the principal, or `database_user:NAME` if it did not come through this service.

    The name of a principal has no colon, so the two cannot be confused.
    """
    return principal or f"database_user:{database_user}"


def unrecorded(stored: str | None, recorded: str | None) -> str:
    """Return a suffix for the etag if the stored text is not the last recorded one; empty if it is.

    A stored text may be older than the change log, or may have been written with the triggers disabled. The suffix makes the
    etags that were read before such a write stale.

    Args:
        stored: the stored text of the workspace.
        recorded: `new_override` of its last log entry; None without an entry.
    """
    return "" if stored == recorded else "-" + sha256((stored or "").encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class WorkspaceRecord:
    """What storage holds for a workspace: the override and the last entry of the change log.

    Attributes:
        override: the stored override; `NO_WORKSPACE` if the workspace does not exist.
        change_id: the number of the last log entry; 0 without an entry.
        change_time: the time of the last log entry, with time zone; None without an entry.
        changed_by: the author of the last log entry, as `author` returns it; empty without an entry.
        unrecorded: the etag's suffix, as `unrecorded` returns it.
    """

    override: StoredOverride
    change_id: int = 0
    change_time: datetime | None = None
    changed_by: str = ""
    unrecorded: str = ""

    @property
    def etag(self) -> str:
        """Return the etag, which changes with every change of the override and with nothing else."""
        return f"{self.change_id}{self.unrecorded}"

    def makes_stale(self, etag: str) -> bool:
        """Return whether a caller's etag is stale: not empty, and not the etag of this existing workspace."""
        return bool(etag) and self.override.exists and etag != self.etag


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


@dataclass(frozen=True, slots=True)
class ChangeNote:
    """The caller's part of a log entry.

    Attributes:
        principal: the name of the caller.
        reason: the caller's reason for the change.
        request_id: the id of the call.
        actor: the person behind the caller; empty if it named none.
    """

    principal: str
    reason: str = ""
    request_id: str = ""
    actor: str = ""


@dataclass(frozen=True, slots=True)
class OverrideChange:
    """The states of a workspace before and after a write.

    Attributes:
        previous: the state before; its override is `NO_WORKSPACE` if the workspace does not exist.
        current: the state after; equal to `previous` if nothing was written.
        stale: whether nothing was written because the caller's etag was stale.
    """

    previous: WorkspaceRecord
    current: WorkspaceRecord
    stale: bool = False

    @classmethod
    def planned(cls, previous: WorkspaceRecord, mode: BillingMode | None, etag: str) -> Self:
        """Return the change that a write of `mode` (None to inherit) makes to `previous`; without its log entry.

        The write changes nothing if the workspace does not exist, if the etag is stale, or if the mode is already stored;
        checked in this order. All repositories and `validate_only` use this method.
        """
        if not previous.override.exists:
            return cls(previous, previous)
        if previous.makes_stale(etag):
            return cls(previous, previous, stale=True)
        return cls(previous, replace(previous, override=StoredOverride(None if mode is None else mode.value)))

    @property
    def writes(self) -> bool:
        """Return whether the stored text changes."""
        return self.current.override != self.previous.override


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Generic[ChangeId]):
    """One entry of the change log.

    Python 3.11 cannot make one as `Change[int](...)`, because the class is frozen: write `Change(...)`.

    Attributes:
        change_id: in storage a number that grows with every change of a workspace; to a caller an opaque text.
        workspace_id: canonical, lower case; empty for the organisation's default.
        change_time: with time zone.
        previous_override: the stored text before, cut to 256 characters; None if the workspace inherited.
        new_override: the stored text after, cut to 256 characters; None if the workspace inherits.
        principal: the caller; empty if the change did not come through this service.
        database_user: the database role that made the change.
        reason: the caller's reason.
        request_id: the id of the call; empty if the change did not come through this service.
        actor: the person behind the caller; empty if it named none.
        kind: what was changed. For the organisation's default the overrides are its recognised modes.
        server: the server that first used the organisation's default; empty for a workspace.
        origin: where it had it from, `file` or `environment`; empty for a workspace.
    """

    change_id: ChangeId
    workspace_id: str
    change_time: datetime
    previous_override: str | None
    new_override: str | None
    principal: str
    database_user: str
    reason: str
    request_id: str
    actor: str = ""
    kind: ChangeKind = ChangeKind.WORKSPACE
    server: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class ChangesPage:
    """Some entries of the change log.

    Attributes:
        changes: newest first.
        snapshot: which transactions were committed when they were read, as Postgres writes a snapshot; empty if the log does
            not know the transactions of its entries.
    """

    changes: Sequence[Change[int]]
    snapshot: str = ""


@dataclass(frozen=True, slots=True)
class WorkspaceBillingMode:
    """The answer of `get`: an existing workspace's billing mode, and its last recorded change.

    Attributes:
        resolution: the mode in force, and what decided it.
        etag: opaque; a write with this etag fails if the override has changed since.
        update_time: when the override last changed, with time zone; None without a recorded change.
        updated_by: the author of that change, as `author` returns it; empty without a recorded change.
        name: the workspace's name, in a list alone; empty without one.
    """

    resolution: Resolution
    etag: str
    update_time: datetime | None
    updated_by: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class BillingModeUpdate:
    """The answer of `set` and `inherit`.

    Attributes:
        current: the state after the write; with `validate_only`, the state that the write would leave.
        previous: the resolution before the write.
    """

    current: WorkspaceBillingMode
    previous: Resolution


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Which list of vendor names judged an answer.

    Attributes:
        set: the set of the catalogue.
        version: the date of the catalogue's last change.
        digest: identifies the names of the set and those that configuration adds.
    """

    set: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.set} {self.version} {self.digest}"


@dataclass(frozen=True, slots=True)
class SecretKeyVerdict:
    """Whether a secret may be written under one key name.

    Attributes:
        secret_key: the key as the caller sent it.
        verdict: the verdict.
        message: a sentence for the caller; if the key is blocked, it names the remedy.
    """

    secret_key: str
    verdict: SecretVerdict
    message: str


@dataclass(frozen=True, slots=True)
class SecretWriteDecision:
    """Whether secrets may be written under the key names of a request.

    Attributes:
        allowed: whether every key is allowed.
        verdicts: one for each key, in the order of the request.
        resolution: the resolution that decided; None if no verdict depended on the mode.
        catalogue: the list of vendor names that judged; None if a server does not say it.
    """

    allowed: bool
    verdicts: tuple[SecretKeyVerdict, ...]
    resolution: Resolution | None
    catalogue: Catalogue | None


@dataclass(frozen=True, slots=True)
class ProvisionPlan:
    """The changes to make to a container's environment before it starts.

    Attributes:
        resolution: the resolution that decided.
        strip_keys: the names to remove, sorted and without duplicates.
        set_env: the variables to set, in every mode.
        route_via_platform_proxy: whether model calls go through the platform's proxy.
        catalogue: the list of vendor names that judged; None if a server does not say it.
        suspect_keys: names in the environment that look like a vendor's and are in no set; they stay.
        blocked: the normalised names that `provision.apply` removes in every spelling under `platform_managed`, also if they
            came into the environment after the plan; None for the default set of this release.
    """

    resolution: Resolution
    strip_keys: tuple[str, ...]
    set_env: dict[str, str]
    route_via_platform_proxy: bool
    catalogue: Catalogue | None = None
    suspect_keys: tuple[str, ...] = ()
    blocked: frozenset[str] | None = field(default=None, repr=False)


class Role(StrEnum):
    """The role of a principal, which decides the methods that it may call."""

    READER = "reader"
    PROVISIONER = "provisioner"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that the server has authenticated.

    Attributes:
        name: the name in the logs and in the change log.
        role: the permissions of the caller.
    """

    name: str
    role: Role
