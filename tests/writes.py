"""What tests of writes share."""

from typing import Final

from billing_grpc.model import Announcement, OverrideChange, StoredOverride

BY: Final = Announcement("tester", "a test", "request-1")


def overrides(change: OverrideChange) -> tuple[StoredOverride, StoredOverride]:
    """What was stored before and after a write."""
    return change.previous.override, change.current.override
