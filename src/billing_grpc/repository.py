"""What the service asks of storage."""

from collections.abc import Collection, Mapping
from typing import Protocol

from billing_grpc.model import BillingMode, OverrideChange, ResolutionError, StoredOverride


class Repository(Protocol):
    """The overrides of one organisation's workspaces.

    Workspace ids are canonical and in lower case. `budget` is in seconds: every method returns or raises within it,
    whatever the database does. All failures are `errors.StorageError`; a failed write may or may not have happened.
    """

    async def load_override(self, workspace_id: str, *, budget: float) -> StoredOverride:
        """What is stored for a workspace; `NO_WORKSPACE` when there is none."""
        ...

    async def load_overrides(
        self, workspace_ids: Collection[str], *, budget: float
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        """What is stored for several workspaces, in one read.

        A workspace that is not stored is absent from the answer; one whose row alone could not be understood has its
        error in it. Raises when the read as a whole failed.
        """
        ...

    async def save_override(self, workspace_id: str, mode: BillingMode | None, *, budget: float) -> OverrideChange:
        """Stores a workspace's own mode, None to inherit, in one transaction with reading what was there before.

        Writes nothing when the workspace does not exist or already says so; safe to repeat.
        """
        ...
