"""The `Repository` protocol: what the service needs from storage."""

from collections.abc import Collection, Mapping
from typing import Protocol

from billing_grpc.model import (
    BillingMode,
    ChangeKind,
    ChangeNote,
    ChangesPage,
    OverrideChange,
    OverrideCounts,
    OverrideKinds,
    ResolutionError,
    StoredOverride,
    WorkspacePage,
    WorkspaceRecord,
)
from billing_grpc.page_token import LogPosition


class Repository(Protocol):
    """The overrides of one organisation's workspaces.

    Workspace ids are canonical and in lower case. `budget` is in seconds: every method returns or raises within it,
    whatever the database does. All failures are `errors.StorageError`; after a failed write, the outcome is unknown. A write
    that the database undid raises `errors.WriteUndone`.
    """

    async def load_override(self, workspace_id: str, *, budget: float) -> StoredOverride:
        """Return the override of a workspace; `NO_WORKSPACE` if the workspace does not exist."""

    async def load_overrides(
        self, workspace_ids: Collection[str], *, budget: float
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        """Return the overrides of several workspaces by id, from one read.

        A workspace that does not exist is absent. A workspace whose row could not be decoded has a `ResolutionError`; the
        others are not affected. Raise only if the whole read failed.
        """

    async def load_record(self, workspace_id: str, *, budget: float) -> WorkspaceRecord:
        """Return the override of a workspace and the last entry of its change log, both as of the same moment."""

    async def save_override(
        self, workspace_id: str, mode: BillingMode | None, *, by: ChangeNote, etag: str = "", budget: float
    ) -> OverrideChange:
        """Store a workspace's override (None to inherit) and its log entry in one transaction; return what changed.

        Write nothing if `OverrideChange.planned` says so: the workspace does not exist, `etag` is stale, or the mode is
        already stored. Safe to repeat.
        """

    async def list_changes(
        self,
        workspace_id: str | None,
        *,
        position: LogPosition,
        limit: int,
        budget: float,
        kind: ChangeKind | None = None,
    ) -> ChangesPage:
        """Return log entries, newest first: of one workspace or of all, and only those that `position` says."""

    async def record_org_default(self, mode: BillingMode | None, *, server: str, origin: str, budget: float) -> bool:
        """Add an entry to the log if this is not the org default that it recorded last; return whether it was added.

        Several servers may call this for one change: one of them adds the entry.
        """

    async def list_workspaces(
        self, kinds: OverrideKinds, *, after: str | None, limit: int, budget: float
    ) -> WorkspacePage:
        """Return at most `limit` workspaces of these kinds in the order of their ids: only those after the id `after`.

        Workspaces that cannot be read come back with an error, whatever `kinds` says. One call looks at a bounded number of
        workspaces, so a page may have fewer than `limit`, also none, although others follow.
        """

    async def count_overrides(self, *, budget: float) -> OverrideCounts:
        """Return how many workspaces have which override, from one read."""

    async def check_administration(self, *, budget: float) -> None:
        """Return if overrides and the change log can be read and written now; raise `StorageError` otherwise."""
