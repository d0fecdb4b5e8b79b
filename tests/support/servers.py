"""Real processes of `billing-grpc serve`, each one stopped by its process id."""

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import grpc

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from tests.support.commands import COMMAND, Changes, Process, environment, start
from tests.support.polling import PATIENCE, until

SETTLED: Final = 0.1
"""Seconds without a new line after which a server that has nothing to do has written what it had to say."""


def decision(resolution: pb.BillingModeResolution) -> tuple[str, str]:
    """Return mode and source in the words of the contract's tables."""
    mode = pb.BillingMode.Name(resolution.resolved_mode).removeprefix("BILLING_MODE_")
    source = pb.BillingModeSource.Name(resolution.source).removeprefix("BILLING_MODE_SOURCE_")
    return mode.lower(), source.lower()


class Server:
    """A process of `billing-grpc serve`, in a process group of its own, as a terminal would start it."""

    def __init__(
        self, program: tuple[str, ...], arguments: list[str], settings: Changes, directory: Path, stderr: int | None
    ) -> None:
        self._out, self._err = directory / "stdout", directory / "stderr"
        self.process: Process
        with self._out.open("wb") as out, self._err.open("wb") as err:
            if program == COMMAND and stderr is None:
                self.process = start(
                    *arguments, settings=settings, stdout=out, stderr=err, directory=directory, start_new_session=True
                )
            else:
                self.process = subprocess.Popen(
                    [*program, *arguments],
                    env=environment(settings),
                    cwd=directory,
                    stdout=out,
                    stderr=stderr or err,
                    start_new_session=True,
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
        server = Server(command, ["serve", *flags], settings or {}, place, stderr)
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
