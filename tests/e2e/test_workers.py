"""Several workers: one address, one life, one metrics port; whoever dies is replaced, and nobody is left behind."""

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import grpc
import psutil
import pytest

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from tests.places import place_for_databases
from tests.support.commands import COMMAND, Changes, billing_grpc, environment
from tests.support.embedded import BYOK, processes
from tests.support.health_client import ADMINISTRATION, LIVENESS, NOT_SERVING, SERVING, check
from tests.support.polling import PATIENCE, until
from tests.support.ports import free_port
from tests.support.servers import Serve, Server, decision, serving
from tests.support.workspaces import as_service

FAILED: Final = 1
CALLS: Final = 40
"""As many connections; that one of two workers gets none of them happens once in a million million times."""

ALREADY_KILLED: Final = 3
"""Seconds in which a killed process is gone; an orphan that drains takes longer."""

# A worker's interpreter that ends before the worker begins.
BROKEN: Final = """
import os, sys
if "billing_grpc.server.processes.worker" in sys.orig_argv:
    os._exit(7)
"""


@pytest.fixture(scope="module")
def settings(module_database_url: str) -> Changes:
    return {
        "DATABASE_URL": as_service(module_database_url),
        "BILLING_GRPC_WORKERS": "2",
        "MOLECULE_LLM_BILLING_MODE": "byok",
    }


@pytest.fixture(scope="module")
def standing(module_serve: Serve, settings: Changes) -> Server:
    """One server for the tests that leave it as it is: each of its processes takes a second of a processor to start."""
    return module_serve(settings=settings)


def workers(server: Server) -> set[psutil.Process]:
    """Its worker processes, dead ones excepted."""
    found = psutil.Process(server.pid).children()
    return {
        each
        for each in found
        if each.status() != psutil.STATUS_ZOMBIE and "billing_grpc.server.processes.worker" in each.cmdline()
    }


@contextmanager
def connections(server: Server, number: int = CALLS) -> Iterator[None]:
    """Connections of as many clients, each of which has called once."""
    with ExitStack() as stack:
        for _ in range(number):
            channel = grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
            stub = service_grpc.BillingModeServiceStub(stack.enter_context(channel))
            answer = stub.ResolveBillingMode(service_pb.ResolveBillingModeRequest(), timeout=30)
            assert decision(answer.resolution) == ("byok", "org_default")
        yield


def loads_grpc(process: psutil.Process) -> bool:
    """Whether it is in the midst of its imports, where an interrupt would be a traceback."""
    return any("cygrpc" in each.path for each in process.memory_maps())


def callers(process: psutil.Process, port: int) -> int:
    return sum(each.status == "ESTABLISHED" and each.laddr.port == port for each in process.net_connections())


def exposed(port: int) -> str:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def listening(process: psutil.Process) -> set[int]:
    return {each.laddr.port for each in process.net_connections() if each.status == "LISTEN"}


def refused(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_workers_share_the_calls_of_one_address_that_is_announced_once(serve: Serve, settings: Changes) -> None:
    server = serve(settings={**settings, "BILLING_GRPC_LISTEN": "127.0.0.1:0,localhost:0"}, listeners=2)
    assert server.stdout == "".join(f"listening on {address}\n" for address in server.addresses)
    pair = workers(server)
    assert len(pair) == 2
    with connections(server):
        assert all(callers(worker, server.port) > 0 for worker in pair)
    assert listening(psutil.Process(server.pid)) == set()
    with grpc.insecure_channel(server.addresses[1]) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)


def test_the_counters_of_all_workers_stand_on_one_metrics_port(serve: Serve, settings: Changes) -> None:
    server = serve(settings={**settings, "BILLING_GRPC_METRICS_LISTEN": "127.0.0.1:0"})
    (port,) = listening(psutil.Process(server.pid))
    with connections(server):
        pass  # each client has called, and its answer was checked
    line = f'billing_grpc_resolutions_total{{mode="byok",source="org_default"}} {CALLS}.0'
    assert line in exposed(port)
    pair = workers(server)
    assert [listening(worker) for worker in pair] == [{server.port}] * 2
    mapped = [Path(each.path) for worker in pair for each in worker.memory_maps() if each.path.endswith(".db")]
    (directory,) = {path.parent for path in mapped}
    assert directory.stat().st_mode & 0o077 == 0

    victim = pair.pop()
    of_the_living = directory / f"gauge_livesum_{victim.pid}.db"
    of_the_living.touch()
    victim.kill()
    until(lambda: not of_the_living.exists())
    assert server.stop() == 0
    assert not directory.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_stops_all_of_them_and_frees_the_port(serve: Serve, settings: Changes, number: signal.Signals) -> None:
    server = serve(settings=settings)
    pair, port = workers(server), server.port
    os.killpg(server.pid, number)  # as a terminal does
    assert server.process.wait(PATIENCE) == 0
    assert not [worker for worker in pair if worker.is_running()]
    assert refused(port)
    assert "Traceback" not in server.stderr


def test_ctrl_c_while_the_workers_start_is_quiet(settings: Changes) -> None:
    started = subprocess.Popen(
        [*COMMAND, "serve"],
        env=environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with started, ExitStack() as stack:
        stack.callback(started.kill)
        begun: list[psutil.Process] = until(lambda: [*filter(loads_grpc, psutil.Process(started.pid).children())])
        assert os.getpgid(begun[0].pid) == begun[0].pid  # a terminal does not reach it
        os.killpg(started.pid, signal.SIGINT)
        out, err = started.communicate(timeout=PATIENCE)
    assert (started.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert not [worker for worker in begun if worker.is_running()]


def test_a_supervisor_that_signals_every_process_is_no_second_signal(serve: Serve, settings: Changes) -> None:
    server = serve(settings={**settings, "BILLING_GRPC_DRAIN_DELAY": "2"})
    for worker in workers(server):
        worker.terminate()
    # Two that come at the same time may be one.
    until(lambda: len(server.records("stopping")) == 2)
    server.process.terminate()
    time.sleep(0.5)
    with connections(server, 10):
        pass  # ten new clients were still answered
    assert server.process.wait(PATIENCE) == 0
    assert len(server.records("stopping")) == 2


def test_all_workers_say_it_first_and_answer_until_the_delay_is_over(serve: Serve, settings: Changes) -> None:
    server = serve(settings={**settings, "BILLING_GRPC_DRAIN_DELAY": "2"})
    until(lambda: [check(server, ADMINISTRATION) for _ in range(5)] == [SERVING] * 5)
    server.process.terminate()
    until(lambda: len(server.records("stopping")) == 2)
    assert {check(server, name) for name in (*LIVENESS, ADMINISTRATION) for _ in range(10)} == {NOT_SERVING}
    with connections(server, 10):
        pass  # ten new clients were still answered
    assert server.process.wait(PATIENCE) == 0


def test_sighup_reaches_every_worker(serve: Serve, settings: Changes, directory: Path) -> None:
    path = directory / "mode"
    path.write_text("byok")
    mode: Changes = {"MOLECULE_LLM_BILLING_MODE": None, "MOLECULE_LLM_BILLING_MODE_FILE": path}
    server = serve(settings={**settings, **mode})
    path.write_text("disabled")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: [each["org_default"] for each in server.records("org default read")][2:] == ["disabled"] * 2)
    assert server.stop() == 0


def test_a_worker_that_dies_is_replaced_and_that_is_an_error(serve: Serve, settings: Changes) -> None:
    server = serve(settings=settings)
    pair = workers(server)
    victim = next(iter(pair))
    victim.kill()
    record = server.logged("a worker ended by itself", level="error")
    assert (record["pid"], record["exit_code"]) == (victim.pid, -signal.SIGKILL)
    until(lambda: len(workers(server) - {victim}) == 2)
    (fresh,) = workers(server) - pair
    until(lambda: listening(fresh) == {server.port})
    with connections(server):
        assert callers(fresh, server.port) > 0
    assert server.stdout.count("listening on") == 1
    assert server.stop() == 0


def test_a_worker_that_dies_again_and_again_is_given_pauses(serve: Serve, settings: Changes, directory: Path) -> None:
    server = serve(settings={**settings, "PYTHONPATH": directory})
    (directory / "sitecustomize.py").write_text(BROKEN)
    next(iter(workers(server))).kill()
    until(lambda: len(server.records("a worker ended by itself")) >= 4)
    records = server.records("a worker ended by itself")
    assert [record["pause"] for record in records[:4]] == [0.1, 0.2, 0.4, 0.8]
    assert [record["exit_code"] for record in records[1:4]] == [7] * 3
    with connections(server):  # the other still answers
        pass
    assert server.stop() == 0


def test_a_worker_that_cannot_start_ends_all_with_its_exit_code(settings: Changes, directory: Path) -> None:
    (directory / "sitecustomize.py").write_text(BROKEN)
    ended = billing_grpc("serve", settings={**settings, "PYTHONPATH": directory})
    assert (ended.returncode, ended.stdout) == (7, "")
    assert "a worker could not start" in ended.stderr


def test_workers_do_not_outlive_a_parent_that_is_killed(serve: Serve, settings: Changes, directory: Path) -> None:
    port = free_port()
    settings = {**settings, "BILLING_GRPC_LISTEN": f"127.0.0.1:{port}"}
    server = serve(settings={**settings, "TMPDIR": directory})
    pair = workers(server)
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    _, alive = psutil.wait_procs(pair, timeout=PATIENCE)
    assert alive == []
    assert list(directory.iterdir()) == []
    assert refused(port)
    again = serve(settings=settings)
    assert decision(again.resolve()) == ("byok", "org_default")


@pytest.mark.parametrize("shares", [False, True], ids=["alone", "shared"])
def test_a_port_of_somebody_else_is_a_start_up_error(settings: Changes, *, shares: bool) -> None:
    with closing(socket.socket()) as taken:
        if shares:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = billing_grpc("serve", settings={**settings, "BILLING_GRPC_LISTEN": address})
    assert (ended.returncode, ended.stdout) == (FAILED, "")
    assert f"billing-grpc: cannot listen on {address}: Address already in use" in ended.stderr


@pytest.mark.parametrize("second", ["1", "2"], ids=["by one process", "by workers"])
def test_a_port_that_workers_have_is_not_shared_with_another_server(
    standing: Server, settings: Changes, second: str
) -> None:
    mine: Changes = {"BILLING_GRPC_WORKERS": second, "BILLING_GRPC_LISTEN": standing.address}
    ended = billing_grpc("serve", settings={**settings, **mine})
    assert (ended.returncode, ended.stdout) == (FAILED, "")
    assert f"billing-grpc: cannot listen on {standing.address}: " in ended.stderr


def test_of_two_that_start_at_once_on_one_port_one_serves_and_one_says_why(settings: Changes) -> None:
    port = free_port()
    mine: Changes = {**settings, "BILLING_GRPC_LISTEN": f"127.0.0.1:{port}"}
    with serving() as one, serving() as other, ThreadPoolExecutor() as threads:

        def why_not(serve: Serve) -> str:
            try:
                serve(settings=mine)
            except AssertionError as error:
                return str(error)
            return ""

        served, refusal = sorted(each.result() for each in [threads.submit(why_not, serve) for serve in (one, other)])
    assert served == ""
    assert f"billing-grpc: cannot listen on 127.0.0.1:{port}: Address already in use" in refusal


@pytest.fixture
def data() -> Iterator[Path]:
    data = place_for_databases() / f"billing-e2e-workers-{uuid.uuid4().hex[:8]}"
    try:
        yield data
    finally:
        shutil.rmtree(data, ignore_errors=True)


def test_the_embedded_database_lives_in_the_parent_and_ends_last(data: Path) -> None:
    own: Changes = {"BILLING_GRPC_WORKERS": "2", "BILLING_GRPC_DATA_DIR": data}
    with serving() as serve:
        server = serve(settings=own)
        (postmaster, *_) = [each for each in processes(data) if each.ppid() == server.pid]
        assert decision(server.resolve(BYOK)) == ("byok", "workspace_override")
        assert "Try, in another terminal:" in server.stdout
        assert server.stop() == 0
        assert not postmaster.is_running()
        assert processes(data) == []
        assert server.records("cannot connect") == []


def test_a_second_signal_leaves_neither_workers_nor_database_behind(data: Path, directory: Path) -> None:
    own: Changes = {"BILLING_GRPC_WORKERS": "2", "BILLING_GRPC_DATA_DIR": data, "BILLING_GRPC_DRAIN_DELAY": "60"}
    with serving() as serve:
        server = serve(settings={**own, "TMPDIR": directory})
        pair = workers(server)
        assert [each.name.startswith("billing-grpc-metrics-") for each in directory.iterdir()] == [True]
        server.process.terminate()
        until(lambda: len(server.records("stopping")) == 2)
        server.process.terminate()
        assert server.process.wait(PATIENCE) == 128 + signal.SIGTERM
        _, alive = psutil.wait_procs(pair, timeout=ALREADY_KILLED)
        assert alive == []
        assert processes(data) == []
        assert list(directory.iterdir()) == []
