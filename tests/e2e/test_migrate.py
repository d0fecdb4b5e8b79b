"""`billing-grpc migrate` and `--version`: what they print, what they change, and how they exit."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import psycopg
import pytest

from billing_grpc import __version__
from billing_grpc.storage import migrations
from tests.support.commands import COMMAND, billing_grpc

FAILED, USAGE = 1, 2
NAMES: Final = migrations.names()
COLUMNS: Final = "SELECT column_name FROM information_schema.columns WHERE table_name = 'workspaces'"
SCRIPT: Final = str(Path(sys.executable).with_name("billing-grpc"))

# id: arguments, DATABASE_URL, exit code, words on standard error
FAILURES: Final = {
    "up without a database": (("up",), None, USAGE, "DATABASE_URL: name the Postgres to migrate; there is no default"),
    "down without a database": (("down",), None, USAGE, "DATABASE_URL: name the Postgres to migrate"),
    "status without a database": (("status",), "", USAGE, "DATABASE_URL: name the Postgres to migrate"),
    "a database that is down": (("up",), "postgresql://127.0.0.1:1/x", FAILED, "Connection refused"),
    "sideways": (("sideways",), "postgresql://127.0.0.1:1/x", USAGE, "No such command 'sideways'"),
}


def migrate(database_url: str, *arguments: str) -> list[str]:
    ended = billing_grpc("migrate", *arguments, settings={"DATABASE_URL": database_url})
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def test_grants_prints_the_sql_of_the_role_and_needs_no_database() -> None:
    ended = billing_grpc("grants")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, migrations.grants().decode(), "")


def columns(database_url: str) -> set[str]:
    with psycopg.connect(database_url) as connection:
        return {str(row[0]) for row in connection.execute(COLUMNS)}


def test_a_database_goes_up_and_down_again(empty_database_url: str) -> None:
    url = empty_database_url
    assert migrate(url, "status") == [f"pending  {name}" for name in NAMES]
    assert columns(url) == set()
    assert migrate(url, "up") == [f"applied {name}" for name in NAMES]
    assert "llm_billing_mode" in columns(url)
    assert migrate(url, "up") == ["nothing to apply"]
    assert migrate(url, "down") == [f"rolled back {NAMES[-1]}"]
    assert migrate(url, "status") == [*(f"applied  {name}" for name in NAMES[:-1]), f"pending  {NAMES[-1]}"]
    assert migrate(url, "up") == [f"applied {NAMES[-1]}"]
    assert migrate(url, "down", "--all") == [f"rolled back {name}" for name in reversed(NAMES)]
    assert "llm_billing_mode" not in columns(url)
    assert "id" in columns(url)  # the table is not ours to drop
    assert migrate(url, "down") == ["nothing to roll back"]


def test_the_database_can_be_named_by_a_flag(empty_database_url: str) -> None:
    ended = billing_grpc("migrate", "--database-url", empty_database_url, "up")
    assert (ended.returncode, ended.stdout.splitlines()) == (0, [f"applied {name}" for name in NAMES])


def test_two_that_start_at_once_do_not_collide(empty_database_url: str) -> None:
    command = [*COMMAND, "migrate", "--database-url", empty_database_url, "up"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        said = sorted(process.communicate(timeout=60)[0].splitlines() for process in running)
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0]
    assert said == [[f"applied {name}" for name in NAMES], ["nothing to apply"]]


@pytest.mark.parametrize(("arguments", "url", "code", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_a_migration_that_cannot_run_says_why(
    arguments: tuple[str, ...], url: str | None, code: int, words: str
) -> None:
    ended = billing_grpc("migrate", *arguments, settings={"DATABASE_URL": url})
    assert (ended.returncode, ended.stdout) == (code, "")
    assert words in ended.stderr


@pytest.mark.parametrize("command", [COMMAND, (SCRIPT,)], ids=["module", "script"])
def test_the_version_is_the_packages(command: tuple[str, ...]) -> None:
    ended = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == (f"billing-grpc, version {__version__}\n", "")
