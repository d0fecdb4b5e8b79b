"""The migrations on a real Postgres: up and down, started together, killed, and on databases that others touched."""

import re
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, Final

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from billing_grpc.errors import MigrationError, SettingsError
from billing_grpc.storage import migrations
from billing_grpc.storage.migrations import MigrationStatus
from tests.databases import SQL_ASCII, new_database
from tests.support.commands import billing_grpc, start
from tests.support.polling import until

BASE: Final = "20260526110000_workspaces_base"
MODE: Final = "20260526120000_workspaces_llm_billing_mode"
LOG: Final = "20260601100000_workspace_billing_mode_changes"
NUMBERS: Final = "20260901100000_workspace_billing_mode_log_numbers"
ACTORS: Final = "20261127100000_workspace_billing_mode_actors"
DEFAULTS: Final = "20261127110000_org_default_changes"
ALL: Final = [BASE, MODE, LOG, NUMBERS, ACTORS, DEFAULTS]

FOREIGN_TABLE: Final = "CREATE TABLE workspaces (id uuid PRIMARY KEY, owner text)"
"""The table as the workspace server may have made it."""

ACCEPTED: Final = {"null": None, "platform_managed": "platform_managed", "byok": "byok", "disabled": "disabled"}
REFUSED: Final = {
    "upper_case": "BYOK",
    "space": " byok",
    "newline": "byok\n",
    "empty": "",
    "other": "free",
    "the_word_null": "NULL",
}

# What is done to a copy of the folder, and what the complaint names.
WRONG_FOLDERS: Final[dict[str, tuple[Callable[[Path], object], str]]] = {
    "two_with_one_number": (lambda folder: add_pair(folder, "20260526120000_something_else"), "20260526120000"),
    "no_rollback": (lambda folder: (folder / f"{MODE}.rollback.sql").unlink(), f"{MODE}.rollback.sql"),
    "rollback_alone": (lambda folder: (folder / f"{MODE}.sql").unlink(), f"{MODE}.rollback.sql"),
    "misspelt_rollback": (
        lambda folder: (folder / f"{MODE}.rollback.sql").rename(folder / f"{MODE}.rolback.sql"),
        f"{MODE}.rolback",
    ),
    "short_number": (lambda folder: add_pair(folder, "2026_new"), "2026_new"),
    "no_number": (lambda folder: add_pair(folder, "new_table"), "new_table"),
    "no_subject": (lambda folder: add_pair(folder, "20270101000000"), "20270101000000"),
    "empty_subject": (lambda folder: add_pair(folder, "20270101000000_"), "20270101000000_"),
    "other_digits": (lambda folder: add_pair(folder, "\u0662" * 14 + "_new"), "_new"),
    "empty_folder": (shutil.rmtree, "no migrations"),
}


@contextmanager
def owner_of(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def owner(empty_database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The empty database's owner, in autocommit mode."""
    with owner_of(empty_database_url) as connection:
        yield connection


def add_pair(folder: Path, name: str) -> None:
    for ending in (".sql", ".rollback.sql"):
        (folder / f"{name}{ending}").write_text("SELECT 1;\n", encoding="utf-8")


def relations(connection: psycopg.Connection[Any]) -> set[str]:
    """Every table, index and sequence that somebody made."""
    found = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    return {row[0] for row in found}


def columns(connection: psycopg.Connection[Any]) -> dict[str, tuple[str, str]]:
    """Type and nullability of the table's columns."""
    found = connection.execute(
        "SELECT column_name::text, data_type::text, is_nullable::text FROM information_schema.columns"
        " WHERE table_name = 'workspaces'"
    )
    return {row[0]: (row[1], row[2]) for row in found}


def checks(connection: psycopg.Connection[Any]) -> list[str]:
    found = connection.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = 'workspaces'::regclass AND contype = 'c' ORDER BY conname"
    )
    return [row[0] for row in found]


def ledger(connection: psycopg.Connection[Any]) -> list[str]:
    """What yoyo noted as applied, one entry for each time."""
    return [row[0] for row in connection.execute("SELECT migration_id FROM _yoyo_migration ORDER BY migration_id")]


def times_applied(connection: psycopg.Connection[Any]) -> list[str]:
    found = connection.execute("SELECT migration_id FROM _yoyo_log WHERE operation = 'apply' ORDER BY migration_id")
    return [row[0] for row in found]


def waits_for_a_lock(connection: psycopg.Connection[Any]) -> list[int]:
    found = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return [row[0] for row in found]


def expected(*applied: str) -> list[MigrationStatus]:
    return [MigrationStatus(name, name in applied) for name in ALL]


# Up and down


def test_an_empty_database_goes_up_down_one_by_one_and_up_again(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    url = empty_database_url
    assert migrations.status(url) == expected()
    assert migrations.up(url) == ALL
    assert migrations.status(url) == expected(*ALL)
    assert columns(owner)["llm_billing_mode"] == ("text", "YES")
    assert migrations.up(url) == []
    assert migrations.down(url) == [DEFAULTS]
    assert migrations.down(url) == [ACTORS]
    assert migrations.down(url) == [NUMBERS]
    assert migrations.down(url) == [LOG]
    assert migrations.status(url) == expected(BASE, MODE)
    assert migrations.down(url) == [MODE]
    assert migrations.status(url) == expected(BASE)
    assert "llm_billing_mode" not in columns(owner)
    assert migrations.down(url) == [BASE]
    assert migrations.down(url) == []
    assert migrations.status(url) == expected()
    assert migrations.up(url) == ALL
    assert columns(owner)["llm_billing_mode"] == ("text", "YES")


def test_everything_goes_down_newest_first(empty_database_url: str) -> None:
    migrations.up(empty_database_url)
    assert migrations.down(empty_database_url, every=True) == ALL[::-1]
    assert migrations.status(empty_database_url) == expected()
    assert migrations.up(empty_database_url) == ALL


def test_what_the_commands_print_names_every_migration(empty_database_url: str) -> None:
    def printed(*arguments: str) -> list[str]:
        ended = billing_grpc("migrate", *arguments, settings={"DATABASE_URL": empty_database_url})
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.splitlines()

    assert printed("up") == [f"applied {name}" for name in ALL]
    assert printed("up") == ["nothing to apply"]
    assert printed("status") == [f"applied  {name}" for name in ALL]
    assert printed("down") == [f"rolled back {DEFAULTS}"]
    assert printed("status") == [*(f"applied  {name}" for name in ALL[:-1]), f"pending  {DEFAULTS}"]
    assert printed("up") == [f"applied {DEFAULTS}"]
    assert printed("down", "--all") == [f"rolled back {name}" for name in ALL[::-1]]


MALFORMED: Final = {
    "half an address": "postgresql://user:p4ssw0rd@[half/db",
    "an escape that is none": "postgresql://user:p4ssw0rd%zz@host/db",
    "an unknown keyword": "host=/tmp passwort=p4ssw0rd",
}


@pytest.mark.parametrize("run", [migrations.up, migrations.down, migrations.status], ids=["up", "down", "status"])
@pytest.mark.parametrize("url", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_address_is_not_repeated(url: str, run: Callable[[str], object]) -> None:
    with pytest.raises(SettingsError) as refused:
        run(url)

    assert "DATABASE_URL" in str(refused.value)
    assert "p4ssw0rd" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_database_without_an_encoding_is_migrated_like_any_other(cluster_url: str) -> None:
    with new_database(cluster_url, SQL_ASCII) as url:
        assert migrations.status(url) == expected()
        assert migrations.up(url) == ALL
        assert migrations.up(url) == []
        assert migrations.status(url) == expected(*ALL)
        assert migrations.down(url, every=True) == ALL[::-1]


def test_looking_at_the_status_writes_nothing(empty_database_url: str, owner: psycopg.Connection[Any]) -> None:
    assert migrations.status(empty_database_url) == expected()
    assert relations(owner) == set()
    read_only = make_conninfo(empty_database_url, options="-c default_transaction_read_only=on")
    migrations.up(empty_database_url)
    assert migrations.status(read_only) == expected(*ALL)


def test_no_workspace_gets_a_mode_by_migrating(empty_database_url: str, owner: psycopg.Connection[Any]) -> None:
    owner.execute(FOREIGN_TABLE)
    owner.execute("INSERT INTO workspaces SELECT gen_random_uuid(), 'x' FROM generate_series(1, 100)")
    migrations.up(empty_database_url)
    assert owner.execute("SELECT llm_billing_mode, count(*) FROM workspaces GROUP BY 1").fetchall() == [(None, 100)]


def test_a_table_of_the_workspace_servers_own_is_left_as_it_is(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    owner.execute(FOREIGN_TABLE)
    before = columns(owner)
    assert migrations.up(empty_database_url) == ALL
    assert columns(owner) == {**before, "llm_billing_mode": ("text", "YES")}
    migrations.down(empty_database_url, every=True)
    assert columns(owner) == before


def test_going_all_the_way_down_keeps_the_table_and_its_rows(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    migrations.up(empty_database_url)
    owner.execute("INSERT INTO workspaces (id, name, llm_billing_mode) VALUES (gen_random_uuid(), 'kept', 'byok')")
    before = owner.execute("SELECT id, name, created_at, updated_at FROM workspaces").fetchall()
    migrations.down(empty_database_url, every=True)
    assert owner.execute("SELECT id, name, created_at, updated_at FROM workspaces").fetchall() == before
    assert len(before) == 1


def test_an_existing_column_keeps_its_check_of_another_name_and_its_modes(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    owner.execute(FOREIGN_TABLE)
    owner.execute(
        "ALTER TABLE workspaces ADD COLUMN llm_billing_mode text"
        " CONSTRAINT by_hand CHECK (llm_billing_mode IN ('platform_managed', 'byok', 'disabled'))"
    )
    owner.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (gen_random_uuid(), 'byok')")
    assert migrations.up(empty_database_url) == ALL
    assert checks(owner) == ["by_hand"]
    assert owner.execute("SELECT llm_billing_mode FROM workspaces").fetchall() == [("byok",)]
    for name in (DEFAULTS, ACTORS, NUMBERS, LOG, MODE):
        assert migrations.down(empty_database_url) == [name]
    assert migrations.up(empty_database_url) == [MODE, LOG, NUMBERS, ACTORS, DEFAULTS]


def test_files_run_by_hand_twice_and_then_by_us_change_nothing(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    for name in (*ALL, *ALL):
        migrations.run_script(empty_database_url, (migrations.directory() / f"{name}.sql").read_bytes())
    before = (columns(owner), checks(owner))
    assert migrations.up(empty_database_url) == ALL
    assert (columns(owner), checks(owner)) == before
    for name in (*ALL[::-1], *ALL[::-1]):
        migrations.run_script(empty_database_url, (migrations.directory() / f"{name}.rollback.sql").read_bytes())
    assert "llm_billing_mode" not in columns(owner)


# The CHECK


@pytest.fixture(scope="module")
def checked(cluster_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A migrated database with one workspace, for tests that leave no trace."""
    with new_database(cluster_url) as url:
        migrations.up(url)
        with owner_of(url) as inside:
            inside.execute("INSERT INTO workspaces (id) VALUES (gen_random_uuid())")
            yield inside


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_the_check_accepts_what_is_recognised(checked: psycopg.Connection[Any], text: str | None) -> None:
    checked.execute("UPDATE workspaces SET llm_billing_mode = %s", [text])
    assert checked.execute("SELECT llm_billing_mode FROM workspaces").fetchall() == [(text,)]


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_the_check_refuses_every_other_text(checked: psycopg.Connection[Any], text: str) -> None:
    with pytest.raises(errors.CheckViolation):
        checked.execute("UPDATE workspaces SET llm_billing_mode = %s", [text])
    with pytest.raises(errors.CheckViolation):
        checked.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (gen_random_uuid(), %s)", [text])


# Together, killed, and after others


def test_four_runs_at_once_on_an_empty_database_succeed_and_apply_each_file_once(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    with ThreadPoolExecutor(4) as threads:
        settings = {"DATABASE_URL": empty_database_url}
        ended = list(threads.map(lambda _: billing_grpc("migrate", "up", settings=settings), range(4)))
    assert [each.stderr for each in ended if each.returncode] == []
    assert sorted(each.stdout for each in ended) == sorted(
        ["".join(f"applied {name}\n" for name in ALL), *["nothing to apply\n"] * 3]
    )
    assert ledger(owner) == ALL
    assert times_applied(owner) == ALL


def test_a_run_that_was_killed_in_the_middle_does_not_block_the_next(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    owner.execute(FOREIGN_TABLE)
    with psycopg.connect(empty_database_url) as holder:
        holder.execute("LOCK TABLE workspaces IN ACCESS SHARE MODE")
        settings = {"DATABASE_URL": empty_database_url}
        killed = start("migrate", "up", settings=settings, stdout=DEVNULL, stderr=DEVNULL)
        until(lambda: waits_for_a_lock(owner))
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(10) == -signal.SIGKILL
        assert owner.execute("SELECT count(*) FROM yoyo_lock").fetchall() == [(1,)]
    assert ledger(owner) == [BASE]
    assert migrations.up(empty_database_url) == [MODE, LOG, NUMBERS, ACTORS, DEFAULTS]
    assert ledger(owner) == ALL
    assert "llm_billing_mode" in columns(owner)


def test_a_lock_row_that_nobody_stands_by_does_not_block(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    migrations.up(empty_database_url)
    owner.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    assert migrations.down(empty_database_url) == [DEFAULTS]
    owner.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    assert migrations.up(empty_database_url) == [DEFAULTS]
    assert owner.execute("SELECT count(*) FROM yoyo_lock").fetchall() == [(0,)]


def test_a_database_that_a_newer_version_migrated_says_so_and_still_goes_up_and_down(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    newer = "20990101000000_from_the_future"
    migrations.up(empty_database_url)
    for _ in (DEFAULTS, ACTORS, NUMBERS, LOG, MODE):
        migrations.down(empty_database_url)
    owner.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) VALUES ('f', %s, now())", [newer]
    )
    unknown = MigrationStatus(newer, applied=True, known=False)
    assert migrations.status(empty_database_url) == [*expected(BASE), unknown]
    assert migrations.up(empty_database_url) == [MODE, LOG, NUMBERS, ACTORS, DEFAULTS]
    assert migrations.status(empty_database_url) == [*expected(*ALL), unknown]
    assert migrations.down(empty_database_url, every=True) == ALL[::-1]
    assert migrations.status(empty_database_url) == [*expected(), unknown]


# Errors


@pytest.mark.parametrize("run", [migrations.up, migrations.down, migrations.status], ids=["up", "down", "status"])
def test_an_unreachable_database_is_a_migration_error_with_the_drivers_words(
    run: Callable[[str], object],
) -> None:
    with pytest.raises(MigrationError, match="/no/such/directory") as raised:
        run("host=/no/such/directory dbname=none user=nobody")
    assert isinstance(raised.value.__cause__, psycopg.OperationalError)


def test_a_missing_right_is_a_migration_error_and_applies_nothing(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    role = f"reader_{uuid.uuid4().hex}"
    owner.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        with pytest.raises(MigrationError):
            migrations.up(make_conninfo(empty_database_url, user=role))
        assert relations(owner) == set()
    finally:
        owner.execute(f"DROP ROLE {role}".encode())


def test_a_role_that_does_not_own_the_table_is_sent_away_before_it_began(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    name = f"other_{uuid.uuid4().hex}"
    role = sql.Identifier(name)
    owner.execute(FOREIGN_TABLE)
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    owner.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(role))
    try:
        with pytest.raises(MigrationError, match=f"workspaces belongs to {owner.info.user}: migrate as"):
            migrations.up(make_conninfo(empty_database_url, user=name))
        assert relations(owner) == {"workspaces", "workspaces_pkey"}
        assert migrations.up(empty_database_url) == ALL
        with pytest.raises(MigrationError, match="belongs to"):
            migrations.down(make_conninfo(empty_database_url, user=name))
    finally:
        owner.execute(sql.SQL("DROP OWNED BY {}").format(role))
        owner.execute(sql.SQL("DROP ROLE {}").format(role))


def test_the_status_is_that_of_the_schema_in_which_up_would_work(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    migrations.up(empty_database_url)
    owner.execute("CREATE SCHEMA tenant")
    owner.execute("CREATE TABLE tenant.workspaces (id uuid PRIMARY KEY)")
    in_tenant = make_conninfo(empty_database_url, options="-c search_path=tenant,public")

    assert migrations.status(in_tenant) == expected()
    assert migrations.up(in_tenant) == ALL
    assert migrations.status(in_tenant) == expected(*ALL)


def test_a_migration_that_fails_leaves_the_schema_as_it_was(
    empty_database_url: str, owner: psycopg.Connection[Any]
) -> None:
    owner.execute(FOREIGN_TABLE)
    owner.execute("CREATE VIEW workspace_billing_mode_changes AS SELECT 1 AS change_id")
    with pytest.raises(MigrationError, match="workspace_billing_mode_changes"):
        migrations.up(empty_database_url)
    assert columns(owner).keys() == {"id", "owner", "llm_billing_mode"}
    assert migrations.status(empty_database_url) == expected(BASE, MODE)
    owner.execute("DROP VIEW workspace_billing_mode_changes")
    assert migrations.up(empty_database_url) == [LOG, NUMBERS, ACTORS, DEFAULTS]


# The files


def test_the_files_are_in_order_and_each_number_is_there_once() -> None:
    names = migrations.names()
    assert names == sorted(names)
    assert names[: len(ALL)] == ALL
    assert len({name.partition("_")[0] for name in names}) == len(names)


@pytest.mark.parametrize(("spoil", "named"), WRONG_FOLDERS.values(), ids=WRONG_FOLDERS)
def test_a_folder_that_is_not_in_order_is_refused_by_the_name_of_the_file(
    tmp_path: Path, spoil: Callable[[Path], object], named: str
) -> None:
    folder = Path(shutil.copytree(migrations.directory(), tmp_path / "migrations"))
    assert migrations.names(folder) == migrations.names()
    spoil(folder)
    with pytest.raises(MigrationError, match=re.escape(named)):
        migrations.names(folder)


def test_triggers_are_not_added_while_the_log_is_missing(empty_database_url: str) -> None:
    migrations.up(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute("DROP TABLE workspaces, workspace_billing_mode_changes")
        owner.execute("CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode text)")
        with pytest.raises(MigrationError, match="workspace_billing_mode_changes is missing"):
            migrations.up(empty_database_url)
        owner.execute("INSERT INTO workspaces VALUES (gen_random_uuid(), 'byok')")
