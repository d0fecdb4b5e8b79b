"""What tests of writes share."""

import uuid
from typing import Any, Final

import psycopg

from billing_grpc.model import ChangeNote, OverrideChange, StoredOverride

BY: Final = ChangeNote("tester", "a test", "request-1")


def add(connection: psycopg.Connection[Any], mode: str | None = None) -> str:
    """The id of a new workspace, with this text as its own mode."""
    workspace = str(uuid.uuid4())
    connection.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, %s)", [workspace, mode])
    return workspace


def overrides(change: OverrideChange) -> tuple[StoredOverride, StoredOverride]:
    """What was stored before and after a write."""
    return change.previous.override, change.current.override
