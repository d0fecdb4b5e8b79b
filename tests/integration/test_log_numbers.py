"""The change log's numbers, which are the etags: they rise, come from the clock, and never come back."""

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg import errors

from billing_grpc.storage import migrations

NUMBERS: Final = "20260901100000_workspace_billing_mode_log_numbers"
FAR: Final = 2**62
"""A number that the clock reaches in the year 2116."""


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def add(owner: psycopg.Connection[Any], mode: str | None = None) -> str:
    made = str(uuid.uuid4())
    owner.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, %s)", [made, mode])
    return made


def change(connection: psycopg.Connection[Any], workspace: str, mode: str | None) -> None:
    connection.execute("UPDATE workspaces SET llm_billing_mode = %s WHERE id = %s", [mode, workspace])


def numbers(owner: psycopg.Connection[Any], workspace: str) -> list[int]:
    """Oldest first."""
    found = owner.execute(
        "SELECT change_id FROM workspace_billing_mode_changes WHERE workspace_id = %s ORDER BY change_id", [workspace]
    )
    return [row[0] for row in found]


def renumber(owner: psycopg.Connection[Any], workspace: str, number: int) -> None:
    """Gives a workspace's one entry another number, as if the clock had been elsewhere."""
    owner.execute(
        "UPDATE workspace_billing_mode_changes SET change_id = %s WHERE workspace_id = %s", [number, workspace]
    )


def test_a_number_is_the_clocks_and_leaves_room_for_two_centuries(owner: psycopg.Connection[Any]) -> None:
    before = time.time_ns() // 1000 - 1_000_000
    (number,) = numbers(owner, add(owner, "byok"))
    assert before < number >> 10 < time.time_ns() // 1000 + 1_000_000
    assert number * 4 < 2**63


def test_the_numbers_of_a_workspace_rise_also_within_one_transaction(owner: psycopg.Connection[Any]) -> None:
    workspace = add(owner)
    with owner.transaction():
        for mode in ("byok", "disabled", None) * 20:
            change(owner, workspace, mode)
    found = owner.execute(
        "SELECT new_override FROM workspace_billing_mode_changes WHERE workspace_id = %s ORDER BY change_id",
        [workspace],
    ).fetchall()
    assert [row[0] for row in found] == ["byok", "disabled", None] * 20


def test_a_log_that_was_dropped_and_made_again_uses_no_number_twice(
    owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner, "byok")
    (before,) = numbers(owner, workspace)
    for _ in range(4):
        migrations.down(database_url)
    migrations.up(database_url)
    change(owner, workspace, "disabled")
    (after,) = numbers(owner, workspace)
    assert after > before


def test_a_log_restored_from_an_older_copy_uses_no_lost_number_again(owner: psycopg.Connection[Any]) -> None:
    workspace = add(owner, "byok")
    change(owner, workspace, "disabled")
    _, lost = numbers(owner, workspace)
    owner.execute("DELETE FROM workspace_billing_mode_changes WHERE change_id = %s", [lost])
    change(owner, workspace, None)
    assert numbers(owner, workspace)[-1] > lost


def test_a_clock_that_was_set_back_gives_the_number_after_the_workspaces_last(owner: psycopg.Connection[Any]) -> None:
    workspace = add(owner, "byok")
    renumber(owner, workspace, FAR)
    change(owner, workspace, "disabled")
    change(owner, workspace, None)
    assert numbers(owner, workspace) == [FAR, FAR + 1, FAR + 2]


def test_a_number_that_another_workspace_has_is_passed_over(owner: psycopg.Connection[Any]) -> None:
    workspace, other, third = add(owner, "byok"), add(owner, "byok"), add(owner, "byok")
    for each, number in ((workspace, FAR), (other, FAR + 1), (third, FAR + 2)):
        renumber(owner, each, number)
    change(owner, workspace, "disabled")
    assert numbers(owner, workspace) == [FAR, FAR + 3]


def test_a_long_transaction_holds_up_no_other_change(owner: psycopg.Connection[Any], database_url: str) -> None:
    # Two sessions draw a number in one microsecond often enough here; had they the same one, the second would wait.
    workspaces, ended = [add(owner) for _ in range(500)], threading.Event()
    many = "INSERT INTO workspaces (id, llm_billing_mode) SELECT gen_random_uuid(), 'byok' FROM generate_series(1, 200)"

    def load() -> None:
        with psycopg.connect(database_url) as bulk:
            while not ended.is_set():
                bulk.execute(many)
            bulk.rollback()

    loading = threading.Thread(target=load)
    loading.start()
    try:
        owner.execute("SET lock_timeout = '2s'")
        for each in workspaces:
            change(owner, each, "byok")
    finally:
        ended.set()
        loading.join()
    assert all(len(numbers(owner, each)) == 1 for each in workspaces)


def test_a_log_whose_sequence_lay_behind_takes_changes_again_once_migrated(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        for name in migrations.names():
            if name < NUMBERS:
                migrations.run_script(empty_database_url, (migrations.directory() / f"{name}.sql").read_bytes())
        workspace = add(owner)
        # As restored by \copy: the rows came, and the sequence stands where it stood.
        owner.execute(
            "INSERT INTO workspace_billing_mode_changes OVERRIDING SYSTEM VALUE"
            " SELECT number, %s, now(), NULL, NULL, '', 'x', '', '' FROM generate_series(1, 5) AS number",
            [workspace],
        )
        with pytest.raises(errors.UniqueViolation):
            change(owner, workspace, "byok")
        migrations.up(empty_database_url)
        change(owner, workspace, "byok")
        assert numbers(owner, workspace)[-1] > 2**50


def test_an_entry_written_by_hand_gets_a_number_too(owner: psycopg.Connection[Any]) -> None:
    owner.execute(
        "INSERT INTO workspace_billing_mode_changes"
        " (workspace_id, change_time, principal, database_user, reason, request_id)"
        " VALUES (gen_random_uuid(), now(), '', 'x', 'by hand', '')"
    )
    row = owner.execute("SELECT change_id FROM workspace_billing_mode_changes").fetchone()
    assert row is not None
    assert row[0] > 2**50
