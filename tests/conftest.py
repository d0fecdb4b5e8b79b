"""What the tests share: one real Postgres for the run, a fresh database for each test that wants one."""

import gc
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from billing_grpc.storage import migrations
from billing_grpc.storage.embedded import EmbeddedPostgres
from tests.databases import new_database
from tests.groups import GroupScheduling, is_timed
from tests.places import place_for_databases

pytest.register_assert_rewrite("tests.support")

TEMPLATE: Final = "billing_template"
MIGRATED: Final = f"TEMPLATE {TEMPLATE} STRATEGY FILE_COPY"
SKIPS_ARE_FAILURES: Final = "CI" in os.environ
IN_PARALLEL: Final = "PYTEST_XDIST_WORKER" in os.environ


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """Keep the tests of a group on one worker."""
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a parallel run begin with what takes longest."""
    if IN_PARALLEL:
        items.sort(key=lambda item: not is_timed(item.nodeid))


def pytest_sessionstart() -> None:
    """Let SIGINT end the processes that tests start, and load modules without the garbage collector in a worker."""
    # A shell lets its background jobs ignore SIGINT, and what they start inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if IN_PARALLEL:
        gc.disable()  # modules make hardly any garbage


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what the whole run needs; otherwise it takes a tenth of all time."""
    gc.freeze()
    gc.enable()


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """On a machine that has every tool, a skipped test is a missing result."""
    if SKIPS_ARE_FAILURES and call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception):
        message = f"{item.nodeid} was skipped where nothing may be: {call.excinfo.value}"
        error = AssertionError(message).with_traceback(call.excinfo.tb)
        call.excinfo = pytest.ExceptionInfo.from_exception(error)


@pytest.fixture(scope="session")
def cluster_url() -> Iterator[str]:
    """A running Postgres whose template database has every migration."""
    directory = place_for_databases() / f"billing-grpc-test-{uuid.uuid4().hex[:8]}"
    try:
        with EmbeddedPostgres(directory, durable=False) as postgres:
            url = postgres.url
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
            template = make_conninfo(url, dbname=TEMPLATE)
            migrations.up(template)
            migrations.run_script(template, migrations.grants())
            yield url
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def empty_database_url(cluster_url: str) -> Iterator[str]:
    """A new database without any table."""
    with new_database(cluster_url) as url:
        yield url


@pytest.fixture
def database_url(cluster_url: str) -> Iterator[str]:
    """A new database with every migration and no workspace."""
    with new_database(cluster_url, MIGRATED) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(cluster_url: str) -> Iterator[str]:
    """A migrated database that all tests of a module share, each with workspaces of its own."""
    with new_database(cluster_url, MIGRATED) as url:
        yield url


@pytest.fixture
def service_url(database_url: str) -> str:
    """The same database as `database_url`, for the role that the service has in production."""
    return make_conninfo(database_url, user=migrations.SERVICE_ROLE)
