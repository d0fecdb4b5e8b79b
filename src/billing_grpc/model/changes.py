"""What a write changes, and the change log: its entries, and what the caller adds to one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Generic, Self, TypeVar

from billing_grpc.model.modes import BillingMode
from billing_grpc.model.records import StoredOverride, WorkspaceRecord


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


ChangeId = TypeVar("ChangeId", int, str)


class ChangeKind(StrEnum):
    """What a recorded change changed."""

    WORKSPACE = "workspace"
    ORG_DEFAULT = "org_default"


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
