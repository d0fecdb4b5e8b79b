"""Health is honest: alive while decisions are answered, and under a name of its own whether administration works."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc
import psutil
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from billing_grpc.storage import migrations
from billing_grpc.storage.embedded import EmbeddedPostgres
from tests.places import place_for_databases
from tests.support.commands import Changes, billing_grpc
from tests.support.health_client import ADMINISTRATION, LIVENESS, NOT_SERVING, SERVICE, SERVING, Watch, check, watching
from tests.support.polling import until
from tests.support.postgres_processes import process_ids
from tests.support.servers import Serve, decision
from tests.support.workspaces import as_service

NOTICED: Final = 2.0
"""Seconds within which a change of the database shows in health, and one more that a busy machine may add."""

SLACK: Final = 1.0


@pytest.fixture
def watch() -> Iterator[Watch]:
    with watching() as new:
        yield new


class Database:
    """A migrated Postgres of its own, at one address whether it runs or not."""

    def __init__(self, place: Path) -> None:
        self._postgres = EmbeddedPostgres(place / "data", durable=False)
        self._sockets = place / "sockets"
        self.url = ""

    def start(self) -> None:
        given = conninfo_to_dict(self._postgres.start())
        self._sockets.unlink(missing_ok=True)
        self._sockets.symlink_to(str(given["host"]))
        self.url = make_conninfo(self._postgres.url, host=os.fspath(self._sockets))

    def stop(self) -> None:
        self._postgres.stop()

    @contextmanager
    def hung(self) -> Iterator[None]:
        stopped = [psutil.Process(pid) for pid in process_ids(self._postgres)]
        for process in stopped:
            process.suspend()
        try:
            yield
        finally:
            for process in stopped:
                process.resume()


@pytest.fixture
def database() -> Iterator[Database]:
    place = place_for_databases() / f"billing-e2e-health-{uuid.uuid4().hex[:8]}"
    place.mkdir(mode=0o755)
    own = Database(place)
    try:
        own.start()
        migrations.up(own.url)
        migrations.run_script(own.url, migrations.grants())
        yield own
    finally:
        own.stop()
        shutil.rmtree(place)


def test_a_database_that_goes_and_comes_is_told_to_who_watches_administration(
    serve: Serve, database: Database, watch: Watch
) -> None:
    server = serve(settings={"DATABASE_URL": as_service(database.url)})
    administration = watch(server, ADMINISTRATION)
    alive = [watch(server, name) for name in LIVENESS]
    until(lambda: administration.last == SERVING)

    gone = time.monotonic()
    database.stop()
    assert administration.when(NOT_SERVING) - gone < NOTICED + SLACK
    assert [check(server, name) for name in (*LIVENESS, ADMINISTRATION)] == [SERVING, SERVING, NOT_SERVING]
    assert decision(server.resolve(str(uuid.uuid4()))) == ("platform_managed", "constant_fallback")

    database.start()
    back = time.monotonic()
    assert administration.when(SERVING) - back < NOTICED + SLACK
    assert [each.statuses for each in alive] == [[SERVING], [SERVING]]


def test_a_database_that_hangs_is_told_too(serve: Serve, database: Database, watch: Watch) -> None:
    server = serve(settings={"DATABASE_URL": as_service(database.url)})
    administration = watch(server, ADMINISTRATION)
    until(lambda: administration.last == SERVING)
    hung = time.monotonic()
    with database.hung():
        assert administration.when(NOT_SERVING) - hung < NOTICED + SLACK
        assert [check(server, name) for name in LIVENESS] == [SERVING, SERVING]
    released = time.monotonic()
    assert administration.when(SERVING) - released < NOTICED + SLACK


def test_a_database_without_the_schema_is_not_serving_until_the_migrations_have_run(
    serve: Serve, empty_database_url: str, watch: Watch
) -> None:
    server = serve(settings={"DATABASE_URL": empty_database_url})
    administration = watch(server, ADMINISTRATION)
    assert server.logged("administration does not work", level="warning")["reason"] == "SCHEMA_NOT_READY"
    assert [check(server, name) for name in (*LIVENESS, ADMINISTRATION)] == [SERVING, SERVING, NOT_SERVING]

    assert billing_grpc("migrate", "up", settings={"DATABASE_URL": empty_database_url}).returncode == 0
    migrated = time.monotonic()
    assert administration.when(SERVING) - migrated < NOTICED + SLACK
    assert administration.statuses == [NOT_SERVING, SERVING]
    server.logged("administration works")


@pytest.fixture
def strict(directory: Path, database_url: str) -> Changes:
    """Settings of a server that lets nobody in without a token."""
    tokens = directory / "tokens.toml"
    tokens.write_text('[[principal]]\nname = "nobody"\nrole = "reader"\n')
    return {
        "DATABASE_URL": as_service(database_url),
        "BILLING_GRPC_LOCAL_ADMIN": None,
        "BILLING_GRPC_TOKENS_FILE": tokens,
    }


def test_health_needs_no_credentials(serve: Serve, strict: Changes, watch: Watch) -> None:
    server = serve(settings=strict)
    with pytest.raises(grpc.RpcError) as refused:
        server.resolve()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert [check(server, name) for name in LIVENESS] == [SERVING, SERVING]
    until(lambda: check(server, ADMINISTRATION) == SERVING)
    watcher = watch(server, ADMINISTRATION)
    until(lambda: watcher.last)


def test_a_name_that_nobody_has_is_not_found_and_may_be_watched_for(
    serve: Serve, strict: Changes, watch: Watch
) -> None:
    server = serve(settings=strict)
    for name in ("nobody", f"{SERVICE}/", "administration"):
        with pytest.raises(grpc.RpcError) as refused:
            check(server, name)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        unknown = watch(server, name)
        unknown.when("SERVICE_UNKNOWN")
        assert len(unknown.told) == 1
