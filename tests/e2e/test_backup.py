"""The operations page's commands for backup and restore, run as they stand there with the real tools."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import psycopg
import pytest

from billing_grpc.model import BillingMode
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository
from tests.databases import new_database
from tests.support.deploy import POSTGRES_TOOLS
from tests.support.workspaces import add_workspace, as_service
from tests.support.writes import BY

PAGE: Final = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
SECTION: Final = PAGE.partition("## Backup and restore\n")[2].partition("\n## ")[0]
DUMP, RESTORE, SAVE, LOAD = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)

TRANSACTION: Final = 10
"""The place of `transaction_id` among the columns of the log."""
BUDGET: Final = 10.0


def run(script: str, database_url: str, folder: Path) -> None:
    """Runs a block of the page where the database's own tools come first."""
    ended = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env={"PATH": f"{POSTGRES_TOOLS}:{os.environ['PATH']}", "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def another_url(cluster_url: str) -> Iterator[str]:
    """A second empty database."""
    with new_database(cluster_url) as url:
        yield url


def change(database_url: str, workspace: str, mode: str | None) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE workspaces SET llm_billing_mode = %s WHERE id = %s", [mode, workspace])


def modes(database_url: str) -> Mapping[str, str | None]:
    with psycopg.connect(database_url) as connection:
        return {str(row[0]): row[1] for row in connection.execute("SELECT id, llm_billing_mode FROM workspaces")}


def log(database_url: str) -> list[tuple[object, ...]]:
    """Every entry whole, oldest first."""
    with psycopg.connect(database_url) as connection:
        return connection.execute("SELECT * FROM workspace_billing_mode_changes ORDER BY change_id").fetchall()


@pytest.fixture
def filled(database_url: str) -> dict[str, str | None]:
    """Workspaces of a database that has been in use, and their modes."""
    kept = {add_workspace(database_url, mode): mode for mode in ("byok", "disabled", None)}
    turned = add_workspace(database_url, "byok")
    change(database_url, turned, None)
    change(database_url, turned, "platform_managed")
    return {**kept, turned: "platform_managed"}


async def test_a_restored_database_is_whole_and_takes_changes_by_everybody(
    database_url: str, another_url: str, filled: dict[str, str | None], tmp_path: Path
) -> None:
    run(DUMP, database_url, tmp_path)
    run(RESTORE, another_url, tmp_path)

    assert modes(another_url) == filled
    assert log(another_url) == [(*entry[:TRANSACTION], None, *entry[TRANSACTION + 1 :]) for entry in log(database_url)]
    assert migrations.up(another_url) == []
    assert all(each.applied for each in migrations.status(another_url))
    async with PostgresRepository.opened(as_service(another_url)) as repository:
        await repository.check_administration(budget=BUDGET)
        for workspace, mode in filled.items():
            direct = "disabled" if mode is None else None
            change(another_url, workspace, direct)
            written = await repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)
            assert written.previous.override.text == direct
            assert written.current.override.text == "byok"
            assert int(written.current.etag) > max(int(str(entry[0])) for entry in log(database_url))


async def test_after_a_restore_from_an_older_backup_an_etag_from_since_is_stale(
    database_url: str, another_url: str, filled: dict[str, str | None], tmp_path: Path
) -> None:
    workspace = next(iter(filled))
    run(DUMP, database_url, tmp_path)
    change(database_url, workspace, "disabled")
    async with PostgresRepository.opened(as_service(database_url)) as repository:
        lost = (await repository.load_record(workspace, budget=BUDGET)).etag
    run(RESTORE, another_url, tmp_path)
    change(another_url, workspace, "platform_managed")
    async with PostgresRepository.opened(as_service(another_url)) as repository:
        refused = await repository.save_override(workspace, BillingMode.BYOK, by=BY, etag=lost, budget=BUDGET)
    assert refused.stale
    assert modes(another_url)[workspace] == "platform_managed"


async def test_modes_and_log_that_were_saved_come_back_after_a_rollback(
    database_url: str, filled: dict[str, str | None], tmp_path: Path
) -> None:
    before = log(database_url)
    run(SAVE, database_url, tmp_path)
    migrations.down(database_url, every=True)
    migrations.up(database_url)
    migrations.run_script(database_url, migrations.grants())
    since = add_workspace(database_url, "byok")
    run(LOAD, database_url, tmp_path)

    assert modes(database_url) == {**filled, since: "byok"}
    after = log(database_url)
    assert after[: len(before)] == before
    assert {str(entry[1]): entry[4] for entry in after[len(before) :]} == {
        workspace: mode for workspace, mode in modes(database_url).items() if mode is not None
    }
    async with PostgresRepository.opened(as_service(database_url)) as repository:
        for workspace in filled:
            written = await repository.save_override(workspace, BillingMode.DISABLED, by=BY, budget=BUDGET)
            assert written.current.override.text == "disabled"


def test_rows_that_are_loaded_into_a_migrated_database_stand_in_its_log(
    database_url: str, another_url: str, filled: dict[str, str | None], tmp_path: Path
) -> None:
    tables = "--table=workspaces --table=workspace_billing_mode_changes"
    run(f'pg_dump --data-only --format=custom {tables} --file=rows "$DATABASE_URL"', database_url, tmp_path)
    migrations.up(another_url)
    run('pg_restore --exit-on-error --data-only --dbname="$DATABASE_URL" rows', another_url, tmp_path)

    assert modes(another_url) == filled
    assert {str(entry[1]): entry[4] for entry in log(another_url)} == {
        workspace: mode for workspace, mode in filled.items() if mode is not None
    }
    for workspace in filled:
        change(another_url, workspace, None)
        change(another_url, workspace, "byok")
