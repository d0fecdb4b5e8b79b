"""What the end-to-end tests share: real processes of `billing-grpc`, each one stopped by its id."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import grpc
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.storage import migrations

PATIENCE: Final = 60.0
"""Seconds after which something will not happen any more; no test waits that long unless it fails."""

SETTLED: Final = 0.1
"""Seconds without a new line after which a server that has nothing to do has written what it had to say."""

COMMAND: Final = (sys.executable, "-m", "billing_grpc")
SETTINGS: Final = {
    "BILLING_GRPC_LOCAL_ADMIN": "on",
    "BILLING_GRPC_LISTEN": "127.0.0.1:0",
    "BILLING_GRPC_METRICS_LISTEN": "off",
}
GRPCURL: Final = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"

Changes = Mapping[str, str | Path | None]
Value = TypeVar("Value")


def until(look: Callable[[], Value]) -> Value:
    """The first answer of `look` that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (seen := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"still {seen!r} after {PATIENCE:.0f} s")
        time.sleep(0.02)
    return seen


def environment(changes: Changes | None = None) -> dict[str, str]:
    """A shell's environment without any setting of ours but `SETTINGS`, changed as told; None takes one away."""
    settings = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **SETTINGS, **(changes or {})}
    return {name: str(value) for name, value in settings.items() if value is not None}


def billing_grpc(*arguments: str, settings: Changes | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command of ours to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env=environment(settings), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def decision(resolution: pb.BillingModeResolution) -> tuple[str, str]:
    """Mode and source, in the words of the contract's tables."""
    mode = pb.BillingMode.Name(resolution.resolved_mode).removeprefix("BILLING_MODE_")
    source = pb.BillingModeSource.Name(resolution.source).removeprefix("BILLING_MODE_SOURCE_")
    return mode.lower(), source.lower()


def as_service(database_url: str) -> str:
    """The address for the role that the service has in production."""
    return make_conninfo(database_url, user=migrations.SERVICE_ROLE)


def add_workspace(database_url: str, mode: str | None = None) -> str:
    """A new workspace's id."""
    workspace_id = str(uuid.uuid4())
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, %s)", [workspace_id, mode])
    return workspace_id


class Server:
    """A process of `billing-grpc serve`, in a process group of its own, as a terminal would start it."""

    def __init__(self, command: list[str], variables: dict[str, str], directory: Path, stderr: int | None) -> None:
        self._out, self._err = directory / "stdout", directory / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command, env=variables, cwd=directory, stdout=out, stderr=stderr or err, start_new_session=True
            )
        self.pid = self.process.pid
        self._channel: grpc.Channel | None = None

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    @property
    def addresses(self) -> list[str]:
        """Where it says that it listens; only lines that are complete."""
        lines = self.stdout.split("\n")[:-1]
        return [line.removeprefix("listening on ") for line in lines if line.startswith("listening on ")]

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def stub(self) -> service_grpc.BillingModeServiceStub:
        """For calls to its first address."""
        self._channel = self._channel or grpc.insecure_channel(self.address)
        return service_grpc.BillingModeServiceStub(self._channel)

    def resolve(self, workspace_id: str = "") -> pb.BillingModeResolution:
        request = service_pb.ResolveBillingModeRequest(workspace_id=workspace_id)
        return self.stub.ResolveBillingMode(request, timeout=PATIENCE).resolution

    def wait_until_listening(self, listeners: int) -> None:
        def listens() -> bool:
            assert self.process.poll() is None, f"exited with {self.process.returncode}: {self.stderr}"
            return len(self.addresses) >= listeners

        until(listens)

    def records(self, event: str = "") -> list[dict[str, Any]]:
        """What it has logged so far under an event that holds these words; only records are written there.

        A thread of the server writes them, so they may come a moment after a call's answer.
        """
        before = None
        while before != (before := self._err.stat().st_size):
            time.sleep(SETTLED)
        parsed: list[dict[str, Any]] = [json.loads(line) for line in self.stderr.split("\n")[:-1]]
        return [record for record in parsed if event in record["event"]]

    def logged(self, event: str, **fields: str) -> dict[str, Any]:
        """The first record with these words and fields, once it is there."""
        return until(lambda: [each for each in self.records(event) if fields.items() <= each.items()])[0]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal unless it has ended already; answers the exit code."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)


class Serve(Protocol):
    """Starts a server and answers once it listens."""

    def __call__(
        self, *flags: str, settings: Changes | None = None, listeners: int = 1, stderr: int | None = None
    ) -> Server:
        """A server with these flags, and these changes to `SETTINGS`."""


@contextmanager
def serving(command: tuple[str, ...] = COMMAND) -> Iterator[Serve]:
    """Servers that are stopped when the context ends."""
    started: list[Server] = []
    directory = Path(tempfile.mkdtemp(prefix="billing-e2e-"))

    def serve(*flags: str, settings: Changes | None = None, listeners: int = 1, stderr: int | None = None) -> Server:
        place = directory / str(len(started))
        place.mkdir()
        server = Server([*command, "serve", *flags], environment(settings), place, stderr)
        started.append(server)
        server.wait_until_listening(listeners)
        return server

    try:
        yield serve
    finally:
        for server in started:
            try:
                server.stop()
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
        shutil.rmtree(directory)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that are stopped after the test."""
    with serving() as start:
        yield start


@pytest.fixture(scope="module")
def module_serve() -> Iterator[Serve]:
    """Starts servers that all tests of a module share."""
    with serving() as start:
        yield start


@pytest.fixture(scope="module")
def module_database_url(cluster_url: str) -> Iterator[str]:
    """A migrated database that all tests of a module share, each with workspaces of its own."""
    name = f"m_{uuid.uuid4().hex}"
    with psycopg.connect(cluster_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            url = make_conninfo(cluster_url, dbname=name)
            migrations.up(url)
            migrations.run_script(url, migrations.grants())
            yield url
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="billing-e2e-") as made:
        yield Path(made)


@pytest.fixture(scope="session")
def grpcurl() -> str:
    """The path of grpcurl."""
    found = shutil.which("grpcurl")
    if found is None:
        pytest.skip(f"grpcurl is not in PATH; install it with: go install {GRPCURL}")
    return found
