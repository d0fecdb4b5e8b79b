"""A stop: said first, then waited for, then calls drain, then the process ends; a second signal waits for nothing."""

import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
import pytest

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from tests.places import place_for_databases
from tests.support.commands import COMMAND, Changes, environment
from tests.support.embedded import BYOK, INHERITS, processes, set_mode
from tests.support.health_client import ADMINISTRATION, LIVENESS, NOT_SERVING, SERVING, Watch, check, watching
from tests.support.polling import PATIENCE, until
from tests.support.servers import Serve, decision, serving
from tests.support.workspaces import add_workspace, as_service

LONG: Final = "60"
ENDING: Final = 10.0
"""Seconds after its grace in which a process has ended; what storage may use in these tests is longer."""

STOPS: Final = (signal.SIGTERM, signal.SIGINT)

# A stop of the database that takes its time, as one with much to write.
SLOW_STOP: Final = """
import time
from billing_grpc.cli.main import main
from billing_grpc.storage.embedded import EmbeddedPostgres

stop = EmbeddedPostgres.stop

def slow(self):
    if self.pid is not None:
        print("the database ends", flush=True)
        time.sleep(60)
    stop(self)

EmbeddedPostgres.stop = slow
main()
"""


@pytest.fixture
def watch() -> Iterator[Watch]:
    with watching() as new:
        yield new


@pytest.fixture
def settings(database_url: str) -> Changes:
    return {"DATABASE_URL": as_service(database_url)}


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """The directory of an embedded database; the tests that stop it hard work on it one after the other."""
    data = place_for_databases() / f"billing-e2e-stop-{uuid.uuid4().hex[:8]}"
    try:
        with serving() as serve:
            assert serve(settings={"BILLING_GRPC_DATA_DIR": data}).stop() == 0
        yield data
    finally:
        shutil.rmtree(data, ignore_errors=True)


@contextmanager
def locked(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A time in which no read of a workspace is answered."""
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")
        yield holder
        holder.rollback()


def waits_for_a_lock(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
    return row is not None and row[0] > 0


def test_health_says_it_first_and_new_calls_are_answered_until_the_delay_is_over(
    serve: Serve, settings: Changes, watch: Watch
) -> None:
    server = serve(settings={**settings, "BILLING_GRPC_DRAIN_DELAY": "2"})
    watchers = [watch(server, name) for name in (*LIVENESS, ADMINISTRATION)]
    until(lambda: [each.last for each in watchers] == [SERVING] * 3)
    told = time.monotonic()
    server.process.terminate()
    said = max(each.when(NOT_SERVING) for each in watchers)
    with grpc.insecure_channel(server.address) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)  # the listener is still there
    assert decision(server.resolve()) == ("platform_managed", "constant_fallback")
    assert check(server, LIVENESS[1]) == NOT_SERVING
    assert server.process.poll() is None
    assert server.process.wait(PATIENCE) == 0
    assert said - told < 1
    assert time.monotonic() - told >= 2
    # No look at the database says otherwise later.
    assert [each.statuses.count(SERVING) for each in watchers] == [1] * 3


def test_at_a_terminal_nobody_waits_for_the_delay(serve: Serve, settings: Changes) -> None:
    server = serve(settings={**settings, "BILLING_GRPC_DRAIN_DELAY": LONG})
    assert server.stop(signal.SIGINT) == 0


def test_a_running_call_gets_the_grace_and_no_more(serve: Serve, settings: Changes, database_url: str) -> None:
    more = {"BILLING_GRPC_STORAGE_TIMEOUT": LONG, "BILLING_GRPC_DRAIN_GRACE": "0.5"}
    server = serve(settings={**settings, **more})
    server.logged("database ready")
    workspace = add_workspace(database_url)
    with locked(database_url) as holder, ThreadPoolExecutor() as threads:
        answer = threads.submit(server.resolve, workspace)
        until(lambda: waits_for_a_lock(holder))
        server.process.terminate()
        with pytest.raises(grpc.RpcError) as cut:
            answer.result(timeout=PATIENCE)
        assert cut.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        # Nor does the process wait for what the database still does, when nobody waits for its answer.
        assert server.process.wait(ENDING) == 0


def test_who_watches_health_does_not_hold_up_a_stop(serve: Serve, settings: Changes, watch: Watch) -> None:
    server = serve(settings={**settings, "BILLING_GRPC_DRAIN_GRACE": LONG})
    watchers = [watch(server, name) for name in LIVENESS]
    until(lambda: [each.last for each in watchers] == [SERVING] * 2)
    server.process.terminate()
    assert server.process.wait(ENDING) == 0
    assert [each.last for each in watchers] == [NOT_SERVING] * 2


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_second_signal_does_not_wait_for_the_delay(serve: Serve, settings: Changes, number: signal.Signals) -> None:
    server = serve(settings={**settings, "BILLING_GRPC_DRAIN_DELAY": LONG})
    server.process.terminate()
    server.logged("stopping")
    server.process.send_signal(number)
    assert server.process.wait(PATIENCE) == 128 + number


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_second_signal_does_not_wait_for_running_calls(
    serve: Serve, settings: Changes, database_url: str, number: signal.Signals
) -> None:
    server = serve(settings={**settings, "BILLING_GRPC_STORAGE_TIMEOUT": LONG})
    server.logged("database ready")
    workspace = add_workspace(database_url)
    with locked(database_url) as holder, ThreadPoolExecutor() as threads:
        answer = threads.submit(server.resolve, workspace)
        until(lambda: waits_for_a_lock(holder))
        server.process.send_signal(number)
        server.logged("stopping")
        server.process.send_signal(number)
        assert server.process.wait(PATIENCE) == 128 + number
        with pytest.raises(grpc.RpcError):
            answer.result(timeout=PATIENCE)


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_second_signal_ends_the_embedded_database_at_once_and_loses_nothing(
    prepared: Path, number: signal.Signals
) -> None:
    settings = {"BILLING_GRPC_DATA_DIR": prepared}
    mode = pb.BILLING_MODE_DISABLED if number is signal.SIGINT else pb.BILLING_MODE_BYOK
    with serving((sys.executable, "-c", SLOW_STOP)) as serve:
        server = serve(settings=settings)
        (postmaster, *_) = processes(prepared)
        (sockets,) = [
            Path(part.partition("=")[2]) for part in postmaster.cmdline() if "unix_socket_directories=" in part
        ]
        set_mode(server, INHERITS, mode)
        server.process.send_signal(number)
        until(lambda: "the database ends" in server.stdout)
        assert processes(prepared) != []
        server.process.send_signal(number)
        assert server.process.wait(PATIENCE) == 128 + number
        assert processes(prepared) == []
        assert not sockets.exists()
    with serving() as serve:
        again = serve(settings=settings)
        assert decision(again.resolve(INHERITS)) == (
            "disabled" if mode == pb.BILLING_MODE_DISABLED else "byok",
            "workspace_override",
        )
        assert decision(again.resolve(BYOK)) == ("byok", "workspace_override")


def test_a_second_signal_during_the_delay_takes_the_embedded_database_along(prepared: Path) -> None:
    settings: Changes = {"BILLING_GRPC_DATA_DIR": prepared, "BILLING_GRPC_DRAIN_DELAY": LONG}
    with serving() as serve:
        server = serve(settings=settings)
        server.process.terminate()
        server.logged("stopping")
        server.process.terminate()
        assert server.process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert processes(prepared) == []


def test_a_signal_during_the_start_leaves_nothing_behind(prepared: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "serve"], env=environment({"BILLING_GRPC_DATA_DIR": prepared}), stdout=subprocess.PIPE
    ) as process:
        until(lambda: processes(prepared) or process.poll() is not None)
        process.terminate()
        assert process.wait(PATIENCE) in {0, 128 + signal.SIGTERM}
    assert processes(prepared) == []
