"""Workspaces in a test's database."""

import uuid

import psycopg
from psycopg.conninfo import make_conninfo

from billing_grpc.storage import migrations


def as_service(database_url: str) -> str:
    """Return the address for the role that the service has in production."""
    return make_conninfo(database_url, user=migrations.SERVICE_ROLE)


def add_workspace(database_url: str, mode: str | None = None) -> str:
    """Insert a workspace with this text as its override; return its id."""
    workspace_id = str(uuid.uuid4())
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, %s)", [workspace_id, mode])
    return workspace_id


def stored_mode(database_url: str, workspace_id: str) -> str | None:
    """Return the text of an existing workspace's override."""
    with psycopg.connect(database_url) as connection:
        found = connection.execute("SELECT llm_billing_mode FROM workspaces WHERE id = %s", [workspace_id]).fetchone()
    assert found is not None
    return None if found[0] is None else str(found[0])
