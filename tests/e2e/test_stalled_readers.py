"""A reader of logs or output that stands still: nobody waits for it, nothing is lost while it reads, all is counted."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing_grpc import stalled_reader
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.server.telemetry.log_queue import DROPPED, LENGTH
from tests.support.commands import COMMAND, Changes, Process, billing_grpc, environment, start
from tests.support.polling import PATIENCE, until
from tests.support.ports import free_port

NO_DATABASE: Final = "postgresql://x@127.0.0.1:1/x"
ENDING: Final = 15.0
"""Seconds in which a process ends whose drain takes a second and a half, on a machine that does other things too."""
WRITES: Final = {"1", "64"}
"""The number of the system call `write`, by architecture."""
PIPE_BYTES: Final = 65536


class Pipe:
    """A pipe whose reader reads when told to."""

    def __init__(self, *, full: bool = False) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        if full:
            os.write(self.writer, b"x" * PIPE_BYTES)
        self.read = b""
        self._thread: threading.Thread | None = None

    def flow(self) -> None:
        """Reads from now on, until nobody writes any more."""
        self._thread = threading.Thread(target=self._drain)
        self._thread.start()

    def end(self) -> str:
        """All that was read."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1
        if self._thread is not None:
            self._thread.join()
        return self.read.decode()

    def _drain(self) -> None:
        while piece := os.read(self.reader, PIPE_BYTES):
            self.read += piece


@contextmanager
def running(
    *arguments: str,
    settings: Changes | None = None,
    stdout: int = DEVNULL,
    stderr: int = DEVNULL,
) -> Iterator[Process]:
    changes = {"DATABASE_URL": NO_DATABASE, **(settings or {})}
    process: Process
    if arguments == ("serve",):
        process = start(*arguments, settings=changes, stdout=stdout, stderr=stderr)
    else:  # how the interpreter ends is a part of how a command does
        process = subprocess.Popen([*COMMAND, *arguments], env=environment(changes), stdout=stdout, stderr=stderr)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def port() -> int:
    return free_port()


@contextmanager
def channel(port: int) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as made:
        grpc.channel_ready_future(made).result(timeout=PATIENCE)
        yield made


def plans(channel: grpc.Channel, number: int) -> None:
    """Calls that leave two lines each, which are answered though nobody may read them."""
    stub = service_grpc.BillingModeServiceStub(channel)
    request = service_pb.PlanProvisionEnvRequest(env_keys=["HF_TOKEN"])
    calls: list[Any] = []
    for _ in range(number):
        calls.append(stub.PlanProvisionEnv.future(request, timeout=PATIENCE))
        if len(calls) == 50:
            assert {call.code() for call in calls} == {grpc.StatusCode.OK}
            calls.clear()
    assert {call.code() for call in calls} <= {grpc.StatusCode.OK}


def serves(channel: grpc.Channel) -> bool:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_with_a_log_that_nobody_reads_calls_are_answered_and_a_stop_takes_no_longer(port: int, workers: str) -> None:
    log = Pipe()
    settings = {"BILLING_GRPC_LISTEN": f"127.0.0.1:{port}", "BILLING_GRPC_WORKERS": workers}
    with running("serve", stderr=log.writer, settings=settings) as process, channel(port) as calls:
        plans(calls, 1000)
        assert serves(calls)
        process.terminate()
        assert process.wait(ENDING) == 0


def test_lines_that_were_dropped_are_counted_and_said_when_it_flows_again(port: int) -> None:
    log, listen = Pipe(), f"127.0.0.1:{port}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        metrics = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = {"BILLING_GRPC_LISTEN": listen, "BILLING_GRPC_METRICS_LISTEN": metrics}
    with running("serve", stderr=log.writer, settings=settings) as process, channel(port) as calls:
        plans(calls, LENGTH // 2 + 1000)
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=PATIENCE) as page:
            counted = re.search(r"^billing_grpc_log_lines_dropped_total (\S+)", page.read().decode(), re.MULTILINE)
        log.flow()
        until(lambda: DROPPED.encode() in log.read)
        process.terminate()
        assert process.wait(ENDING) == 0
    records = lines(log.end())
    said = [record["lines"] for record in records if record["event"] == DROPPED]
    assert counted is not None
    assert sum(said) >= float(counted[1]) > 500
    plans_and_calls = [each for each in records if each["event"] == "call" or "workspace_provision" in each["event"]]
    assert len(plans_and_calls) + sum(said) >= LENGTH + 2000
    assert records[-1]["event"] == "stopped"


def test_no_line_is_lost_when_a_server_stops_whose_log_is_read(port: int) -> None:
    log = Pipe()
    settings = {"BILLING_GRPC_LISTEN": f"127.0.0.1:{port}"}
    with running("serve", stderr=log.writer, settings=settings) as process, channel(port) as calls:
        plans(calls, 1000)
        process.terminate()
        time.sleep(stalled_reader.PATIENCE / 2)  # a reader that comes late finds most of the lines still in the queue
        log.flow()
        assert process.wait(ENDING) == 0
    records = lines(log.end())
    assert sum(record["event"] == "call" for record in records) == 1000
    assert [record["event"] for record in records][-2:] == ["stopping", "stopped"]


def test_standard_output_that_nobody_reads_holds_up_neither_calls_nor_the_stop(port: int) -> None:
    out = Pipe(full=True)
    with (
        running("serve", settings={"BILLING_GRPC_LISTEN": f"127.0.0.1:{port}"}, stdout=out.writer) as process,
        channel(port) as calls,
    ):
        plans(calls, 1)
        process.terminate()
        assert process.wait(ENDING) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_start_that_fails_ends_though_nobody_reads_why(workers: str) -> None:
    log = Pipe(full=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = {"BILLING_GRPC_LISTEN": listen, "BILLING_GRPC_WORKERS": workers}
        with running("serve", settings=settings, stderr=log.writer) as process:
            assert process.wait(PATIENCE) == 1


# id: a command that has more to write than fits, and where to
WRITING: Final = {
    "a complaint": (("resolve", "no-id"), "stderr"),
    "a closed answer": (("resolve", "", "--timeout", "0.2"), "stderr"),
    "an answer": (("resolve", "", "--timeout", "0.2"), "stdout"),
    "help": (("--help",), "stdout"),
    "a script": (("completion", "bash"), "stdout"),
    "a wrong setting": (("serve", "--workers", "x"), "stderr"),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(("arguments", "stream"), WRITING.values(), ids=WRITING)
def test_a_signal_ends_a_command_whose_reader_stands_still(
    arguments: tuple[str, ...], stream: str, number: signal.Signals
) -> None:
    pipe = Pipe(full=True)
    out, err = (pipe.writer, DEVNULL) if stream == "stdout" else (DEVNULL, pipe.writer)
    with running(*arguments, stdout=out, stderr=err) as process:
        until(lambda: waits_for_its_reader(process.pid))
        process.send_signal(number)
        assert process.wait(ENDING) in {128 + number, -number}


def waits_for_its_reader(pid: int) -> bool:
    number, descriptor, *_ = [*Path(f"/proc/{pid}/syscall").read_text().split(), ""]
    return number in WRITES and descriptor in {"0x1", "0x2"}


def test_commands_at_a_working_reader_still_say_everything() -> None:
    ended = billing_grpc("resolve", "no-id")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "no-id" in ended.stderr
    with ThreadPoolExecutor() as threads:
        helps = list(threads.map(lambda _: billing_grpc("--help").stdout, range(2)))
    assert helps[0] == helps[1]
    assert "validate-secret" in helps[0]
