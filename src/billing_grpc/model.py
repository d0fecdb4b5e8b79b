"""The values the service thinks in: frozen, without behaviour that could fail, and without any library."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Final, Generic, Self, TypeVar


class BillingMode(StrEnum):
    """Who pays for a workspace's language-model calls; the value is its stored and logged text."""

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


class SecretVerdict(StrEnum):
    """Whether a secret may be written under a key name."""

    ALLOWED = "allowed"
    BLOCKED_PLATFORM_MANAGED = "blocked_platform_managed"
    BLOCKED_RESERVED = "blocked_reserved"


@dataclass(frozen=True, slots=True)
class StoredOverride:
    """What storage holds for a workspace.

    Attributes:
        text: the stored text, cut to 256 characters, recognised or not; None when the workspace inherits.
        exists: whether there is such a workspace at all; without one, `text` is None.
    """

    text: str | None
    exists: bool = True


NO_WORKSPACE = StoredOverride(text=None, exists=False)


@dataclass(frozen=True, slots=True)
class ResolutionError:
    """Why an override could not be read.

    Attributes:
        reason: one of the six UPPER_SNAKE storage reasons of the contract.
        message: a sentence for people, free of driver text, SQL and hosts.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """Who pays for a workspace, and everything that led to that answer.

    Attributes:
        workspace_id: canonical, lower case; empty when no workspace was asked about.
        mode: the mode to act on.
        source: the rule that decided.
        workspace_override: the stored text when there is one, also when it is not a recognised mode.
        org_default: the organisation's default as it was used; `platform_managed` when unset or unrecognised.
        reason: a sentence for people.
        error: present when the override could not be read and the answer is therefore the closed one.
    """

    workspace_id: str
    mode: BillingMode
    source: BillingModeSource
    workspace_override: str | None
    org_default: BillingMode
    reason: str
    error: ResolutionError | None = None


def author(principal: str, database_user: str) -> str:
    """Name who made a change: the principal, or `database_user:NAME` where it did not come through this service.

    No principal has a colon in its name, so neither can pass for the other.
    """
    return principal or f"database_user:{database_user}"


def unrecorded(stored: str | None, recorded: str | None) -> str:
    """Return what an etag gets where the log does not know the stored text; empty where it does.

    A mode may be older than the log, or come with the triggers disabled. An etag from before must not be taken for current.

    Args:
        stored: what the workspace holds.
        recorded: what its last entry left; None without an entry.
    """
    return "" if stored == recorded else "-" + sha256((stored or "").encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class WorkspaceRecord:
    """What storage holds for a workspace, and who left it so.

    Attributes:
        override: what is stored; `NO_WORKSPACE` when there is none.
        change_id: the last entry of the change log; 0 when no change was ever recorded.
        change_time: when that was, with time zone; None without an entry.
        changed_by: as `author` says; empty without an entry.
        unrecorded: tells stored texts that are not what the last entry says apart (`unrecorded`); empty for one that is.
    """

    override: StoredOverride
    change_id: int = 0
    change_time: datetime | None = None
    changed_by: str = ""
    unrecorded: str = ""

    @property
    def etag(self) -> str:
        """Changes with every change of the override and with nothing else."""
        return f"{self.change_id}{self.unrecorded}"

    def makes_stale(self, etag: str) -> bool:
        """Whether a caller's etag is stale: given, of a workspace that exists, and not this one."""
        return bool(etag) and self.override.exists and etag != self.etag


@dataclass(frozen=True, slots=True)
class ChangeNote:
    """What the change log is told about a write.

    Attributes:
        principal: who is calling.
        reason: why, in the caller's words.
        request_id: the call's name.
    """

    principal: str
    reason: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class OverrideChange:
    """What a write found and what it left behind.

    Attributes:
        previous: the state before; its override is `NO_WORKSPACE` when there was nothing to write to.
        current: the state the write left; equal to `previous` when nothing had to change, or the etag was stale.
        stale: whether the caller's etag was not the workspace's, so that nothing was written.
    """

    previous: WorkspaceRecord
    current: WorkspaceRecord
    stale: bool = False

    @classmethod
    def planned(cls, previous: WorkspaceRecord, mode: BillingMode | None, etag: str) -> Self:
        """Return what a write of `mode` (None to inherit) leaves of `previous`, apart from the log entry it will add.

        Writes nothing to a workspace that does not exist, for a stale etag, or where the workspace already says so; looked
        at in this order. Every repository and `validate_only` decide here.
        """
        if not previous.override.exists:
            return cls(previous, previous)
        if previous.makes_stale(etag):
            return cls(previous, previous, stale=True)
        return cls(previous, replace(previous, override=StoredOverride(None if mode is None else mode.value)))

    @property
    def writes(self) -> bool:
        """Whether the stored text changes."""
        return self.current.override != self.previous.override


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Generic[ChangeId]):
    """One entry of the change log.

    Python 3.11 cannot make one as `Change[int](...)`, because the class is frozen: write `Change(...)`.

    Attributes:
        change_id: in storage a number that grows with every change of a workspace; to a caller an opaque text.
        workspace_id: canonical, lower case.
        change_time: with time zone.
        previous_override: the stored text before, cut to 256 characters; None if the workspace inherited.
        new_override: the stored text after, cut to 256 characters; None if the workspace inherits.
        principal: the caller; empty if the change did not come through this service.
        database_user: the database role that made the change.
        reason: the caller's reason.
        request_id: the id of the call; empty if the change did not come through this service.
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


@dataclass(frozen=True, slots=True)
class WorkspaceBillingMode:
    """A workspace's billing mode as a caller sees it.

    Attributes:
        resolution: the mode in force and why.
        etag: opaque; sent back, it lets a write happen only if nothing changed since.
        update_time: when the override last changed, with time zone; None when no change was ever recorded.
        updated_by: who did: a principal, or `database_user:NAME`; empty when no change was ever recorded.
    """

    resolution: Resolution
    etag: str
    update_time: datetime | None
    updated_by: str


@dataclass(frozen=True, slots=True)
class BillingModeUpdate:
    """What a write left behind and what it found, as a caller sees it.

    Attributes:
        current: the state after the call; that which would result, when the call was to validate only.
        previous: the resolution before.
    """

    current: WorkspaceBillingMode
    previous: Resolution


@dataclass(frozen=True, slots=True)
class SecretKeyVerdict:
    """Whether one key may be written.

    Attributes:
        secret_key: the key exactly as it was asked about.
        verdict: the verdict.
        message: a sentence for people; when blocked, what to do about it.
    """

    secret_key: str
    verdict: SecretVerdict
    message: str


@dataclass(frozen=True, slots=True)
class SecretWriteDecision:
    """Whether secrets may be stored under some names.

    Attributes:
        allowed: whether all of them may.
        verdicts: one for each key asked about, in that order.
        resolution: the resolution that decided; None when no key needed a mode.
    """

    allowed: bool
    verdicts: tuple[SecretKeyVerdict, ...]
    resolution: Resolution | None


@dataclass(frozen=True, slots=True)
class ProvisionPlan:
    """What to do to a container's environment before it starts.

    Attributes:
        resolution: the resolution that decided.
        strip_keys: the names to remove, sorted, each once.
        set_env: the variables to set, in every mode.
        route_via_platform_proxy: whether model calls go through the platform's proxy.
    """

    resolution: Resolution
    strip_keys: tuple[str, ...]
    set_env: dict[str, str]
    route_via_platform_proxy: bool


class Role(StrEnum):
    """What a caller is; what it may do stands in `access`."""

    READER = "reader"
    PROVISIONER = "provisioner"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling.

    Attributes:
        name: stands in the logs and in the change log.
        role: decides what the caller may do.
    """

    name: str
    role: Role
