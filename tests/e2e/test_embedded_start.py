"""A start without `DATABASE_URL`: a database of its own, workspaces to play with, lines that work when pasted."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import pytest

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from tests.places import place_for_databases
from tests.support.commands import Changes, billing_grpc, environment
from tests.support.embedded import BYOK, DISABLED, INHERITS, PLATFORM, processes, set_mode
from tests.support.polling import PATIENCE
from tests.support.servers import Serve, Server, decision, serving

# id: org default, and what each demo workspace resolves to
DEMO: Final = {
    "without an org default": (
        None,
        {
            BYOK: ("byok", "workspace_override"),
            INHERITS: ("platform_managed", "constant_fallback"),
            DISABLED: ("disabled", "workspace_override"),
            PLATFORM: ("platform_managed", "workspace_override"),
        },
    ),
    "under byok": (
        "byok",
        {
            BYOK: ("byok", "workspace_override"),
            INHERITS: ("byok", "org_default"),
            DISABLED: ("disabled", "workspace_override"),
            PLATFORM: ("platform_managed", "workspace_override"),
        },
    ),
}
PASTED: Final = ["grpcurl", "grpcurl", "grpcurl", "billing-grpc", "billing-grpc"]


def new_directory() -> Path:
    """A path directly below the temporary directory: as root, the database's user has to get there."""
    return place_for_databases() / f"billing-e2e-data-{uuid.uuid4().hex[:8]}"


def settings(data: Path, **more: str | None) -> Changes:
    return {"BILLING_GRPC_DATA_DIR": data, **more}


def ctrl_c(server: Server) -> int:
    """What a terminal does: the whole process group is interrupted."""
    os.killpg(server.pid, signal.SIGINT)
    return server.process.wait(PATIENCE)


def pasted(line: str, path: str) -> str:
    """What a shell prints for the line."""
    ended = subprocess.run(
        ["/bin/sh", "-c", line],
        env=environment({"PATH": path}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, f"{line}: {ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """The directory after a first start; the tests work on copies, because making one takes its time."""
    data = new_directory()
    try:
        with serving() as serve:
            assert ctrl_c(serve(settings=settings(data))) == 0
        yield data
    finally:
        shutil.rmtree(data, ignore_errors=True)


@pytest.fixture
def data(prepared: Path) -> Iterator[Path]:
    """That directory itself, for tests that change nothing in it."""
    yield prepared
    assert processes(prepared) == []


@pytest.fixture
def copied(prepared: Path) -> Iterator[Path]:
    copy = new_directory()
    try:
        subprocess.run(["cp", "-a", prepared, copy], check=True)
        yield copy
        assert processes(copy) == []
    finally:
        shutil.rmtree(copy, ignore_errors=True)


@pytest.fixture
def serve(prepared: Path, request: pytest.FixtureRequest) -> Iterator[Serve]:
    """As the shared fixture of that name, but its servers end before the directories are looked at and removed."""
    del prepared
    for name in {"data", "copied"} & set(request.fixturenames):
        request.getfixturevalue(name)
    with serving() as start:
        yield start


@pytest.mark.parametrize(("org_default", "expected"), DEMO.values(), ids=DEMO.keys())
def test_the_demo_workspaces_show_every_case(
    serve: Serve, data: Path, org_default: str | None, expected: dict[str, tuple[str, str]]
) -> None:
    server = serve(settings=settings(data, MOLECULE_LLM_BILLING_MODE=org_default))
    assert {workspace: decision(server.resolve(workspace)) for workspace in expected} == expected
    printed = {line.split()[0]: line.split()[1] for line in server.stdout.splitlines() if line.startswith("  0000")}
    assert printed == {BYOK: "byok", INHERITS: "inherits", DISABLED: "disabled", PLATFORM: "platform_managed"}
    assert processes(data) != []


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_lines_to_paste_work(serve: Serve, copied: Path, directory: Path, grpcurl: str, kind: str) -> None:
    listen = "127.0.0.1:0" if kind == "tcp" else f"unix:{directory / 'socket'}"
    server = serve(settings=settings(copied, BILLING_GRPC_LISTEN=listen))
    _, _, hints = server.stdout.replace("\\\n", "").partition("Try, in another terminal:\n")
    lines = [line.strip() for line in hints.split("\n\n")[0].splitlines()]
    assert [Path(line.split()[0]).name for line in lines] == PASTED
    script = Path(sys.executable).with_name("billing-grpc")  # a newcomer's is in the checkout
    path = f"{Path(grpcurl).parent}:{os.environ['PATH']}"
    said = [pasted(line.replace(".venv/bin/billing-grpc", str(script)), path) for line in lines]
    assert "molecule.billing.v1.BillingModeService" in said[0]
    assert '"resolvedMode": "BILLING_MODE_PLATFORM_MANAGED"' in said[1]
    assert "SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED" in said[2]
    assert said[3].startswith("platform_managed  (constant_fallback)")
    assert said[4].startswith("byok  (workspace_override)")


@pytest.mark.parametrize("stop", [ctrl_c, Server.stop], ids=["ctrl-c", "sigterm"])
def test_a_stop_is_clean_and_takes_the_database_along(serve: Serve, data: Path, stop: Callable[[Server], int]) -> None:
    server = serve(settings=settings(data))
    (postmaster, *_) = processes(data)
    sockets = [Path(part.partition("=")[2]) for part in postmaster.cmdline() if "unix_socket_directories=" in part]
    assert [each.is_dir() for each in sockets] == [True]
    assert stop(server) == 0
    assert processes(data) == []
    assert [each.exists() for each in sockets] == [False]
    assert [record["event"] for record in server.records("stop")] == ["stopping", "stopped"]
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_impatient_stop_leaves_no_database_behind(serve: Serve, data: Path, number: signal.Signals) -> None:
    server = serve(settings=settings(data))
    deadline = time.monotonic() + PATIENCE
    while server.process.poll() is None and time.monotonic() < deadline:
        with suppress(ProcessLookupError):  # the process has ended in the meantime
            os.killpg(server.pid, number)
        time.sleep(0.001)
    left = processes(data)
    for process in left:
        process.terminate()
    psutil.wait_procs(left, timeout=PATIENCE)
    # The database may stop faster than the second signal comes.
    assert (server.process.returncode in {0, 128 + number}, left) == (True, [])


def test_what_was_changed_is_there_at_the_next_start(serve: Serve, copied: Path) -> None:
    server = serve(settings=settings(copied))
    set_mode(server, INHERITS, pb.BILLING_MODE_DISABLED)
    set_mode(server, BYOK, pb.BILLING_MODE_PLATFORM_MANAGED)
    assert ctrl_c(server) == 0
    again = serve(settings=settings(copied))
    assert decision(again.resolve(INHERITS)) == ("disabled", "workspace_override")
    assert decision(again.resolve(BYOK)) == ("platform_managed", "workspace_override")
    assert decision(again.resolve(DISABLED)) == ("disabled", "workspace_override")


def test_a_killed_server_loses_nothing_and_does_not_block_the_next(serve: Serve, copied: Path) -> None:
    server = serve(settings=settings(copied))
    set_mode(server, INHERITS, pb.BILLING_MODE_BYOK)
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    again = serve(settings=settings(copied))
    assert decision(again.resolve(INHERITS)) == ("byok", "workspace_override")


def test_a_second_start_on_the_same_data_says_who_has_it(serve: Serve, data: Path) -> None:
    server = serve(settings=settings(data))
    ended = billing_grpc("serve", settings=settings(data))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"billing-grpc: another process runs the embedded Postgres in {data}; " in ended.stderr
    assert decision(server.resolve(BYOK)) == ("byok", "workspace_override")


def test_a_taken_port_takes_the_database_down_again(serve: Serve, data: Path) -> None:
    taken = serve(settings={"DATABASE_URL": "postgresql://127.0.0.1:1/nowhere"})
    ended = billing_grpc("serve", settings=settings(data, BILLING_GRPC_LISTEN=taken.address))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"billing-grpc: cannot listen on {taken.address}: " in ended.stderr
    assert processes(data) == []
