"""What is checked before a migration, and what is completed after it."""

from typing import Any

import psycopg

from billing_grpc.errors import MigrationError
from billing_grpc.storage.migrations.table_shape import FIND_FAULTS, reasons_against


def require_rights(connection: psycopg.Connection[Any], ledger: str) -> None:
    """Return if the role may migrate. If a wrong role began, its new tables would block the right role.

    Args:
        connection: to the database.
        ledger: the name of yoyo's table of applied migrations.

    Raises:
        MigrationError: the role lacks a right.
    """
    row = connection.execute(
        "SELECT current_user::text, coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
    ).fetchone()
    role, may_create = row or ("", False)
    if not may_create:
        raise MigrationError(
            f"the role {role} may not create tables in this schema; migrate as the owner of the database"
        )
    owned_by_others = connection.execute(
        "SELECT relname::text, pg_get_userbyid(relowner)::text FROM pg_class"
        " WHERE oid = ANY(ARRAY[to_regclass('workspaces'), to_regclass('yoyo_lock'), to_regclass(%s)]::oid[])"
        " AND NOT pg_has_role(relowner, 'USAGE')",
        [ledger],
    ).fetchone()
    if owned_by_others:
        table, owner = owned_by_others
        raise MigrationError(f"the table {table} belongs to {owner}: migrate as {owner}, or as a member of it")


def require_safe_table(connection: psycopg.Connection[Any], *, allow_unsafe: bool) -> None:
    """Return if the shape of `workspaces` can be migrated.

    Raises:
        MigrationError: the shape cannot be migrated, or is unsafe and not allowed (`table_shape`).
    """
    reasons = reasons_against((row[0] for row in connection.execute(FIND_FAULTS)), allow_unsafe=allow_unsafe)
    if reasons:
        offer = "" if allow_unsafe else "; --allow-unsafe-table migrates all the same where the table can take it"
        raise MigrationError("; ".join(reasons) + offer)


def attach_triggers(connection: psycopg.Connection[Any]) -> list[str]:
    """Add the change log's triggers to new partitions; return the names of their tables."""
    row = connection.execute("SELECT to_regproc('attach_workspace_billing_mode_triggers') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return []
    attached = connection.execute(
        "SELECT DISTINCT table_name::text FROM attach_workspace_billing_mode_triggers() AS table_name"
    )
    return [str(each[0]) for each in attached]
