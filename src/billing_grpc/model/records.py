"""What storage holds for a workspace: its override, and the last entry of its change log."""

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256


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
