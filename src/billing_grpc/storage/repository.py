"""What the service asks of storage."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from billing_grpc.model import (
    BillingMode,
    Change,
    ChangeNote,
    OverrideChange,
    ResolutionError,
    StoredOverride,
    WorkspaceRecord,
)


class Repository(Protocol):
    """The overrides of one organisation's workspaces.

    Workspace ids are canonical and in lower case. `budget` is in seconds: every method returns or raises within it,
    whatever the database does. All failures are `errors.StorageError`; a failed write may or may not have happened.
    """

    async def load_override(self, workspace_id: str, *, budget: float) -> StoredOverride:
        """What is stored for a workspace; `NO_WORKSPACE` when there is none."""

    async def load_overrides(
        self, workspace_ids: Collection[str], *, budget: float
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        """What is stored for several workspaces, in one read.

        A workspace that is not stored is absent from the answer; one whose row alone could not be understood has its
        error in it. Raises when the read as a whole failed.
        """

    async def load_record(self, workspace_id: str, *, budget: float) -> WorkspaceRecord:
        """What is stored for a workspace and who left it so, as of one moment."""

    async def save_override(
        self, workspace_id: str, mode: BillingMode | None, *, by: ChangeNote, etag: str = "", budget: float
    ) -> OverrideChange:
        """Stores a workspace's own mode, None to inherit, and its entry in the change log, in one transaction.

        Writes nothing when the workspace does not exist, when `etag` is neither empty nor the workspace's, or when the
        workspace already says so; looked at in this order. Safe to repeat.
        """

    async def list_changes(
        self, workspace_id: str | None, *, before: int | None, limit: int, budget: float
    ) -> Sequence[Change[int]]:
        """Entries of the change log, newest first: of one workspace or all, older than the entry `before`."""

    async def check_administration(self, *, budget: float) -> None:
        """Comes back when overrides and the change log could be read and written now; raises what stands against it."""
