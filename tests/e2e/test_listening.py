"""Addresses: announced with their real ports, never shared with another server, free again after a stop."""

import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Protocol

import grpc
import psutil
import pytest

from tests.support.commands import Changes, billing_grpc
from tests.support.servers import Serve, Server
from tests.support.workspaces import as_service

FAILED: Final = 1

# id: the host that we are told to listen on, whether who has the port would share it
FOREIGN: Final = {
    "127.0.0.1": ("127.0.0.1", False),
    "localhost": ("localhost", False),
    "127.0.0.1, shared": ("127.0.0.1", True),
}


class Listen(Protocol):
    """The settings of a server that listens on these addresses."""

    def __call__(self, *addresses: str) -> Changes: ...


@pytest.fixture
def listen(module_database_url: str) -> Listen:
    return lambda *addresses: {
        "BILLING_GRPC_LISTEN": ",".join(addresses),
        "DATABASE_URL": as_service(module_database_url),
    }


@contextmanager
def foreign_listener(*, shares: bool) -> Iterator[int]:
    with closing(socket.socket()) as taken:
        if shares:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def answers(server: Server, address: str) -> bool:
    assert address in server.addresses
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
    return server.process.poll() is None


def refuses(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_every_address_is_announced_with_its_real_port_and_answers(
    listen: Listen, serve: Serve, directory: Path
) -> None:
    path = directory / "socket"
    server = serve(settings=listen("127.0.0.1:0", "localhost:0", f"unix:{path}"), listeners=3)
    hosts = [address.rpartition(":")[0] for address in server.addresses]
    assert hosts == ["127.0.0.1", "localhost", "unix"]
    assert server.addresses[2] == f"unix:{path}"
    assert server.stdout == "".join(f"listening on {address}\n" for address in server.addresses)
    for address in server.addresses:
        assert answers(server, address)
    assert server.logged("serving")["addresses"] == server.addresses


def test_only_the_owner_may_connect_to_a_unix_socket(listen: Listen, serve: Serve, directory: Path) -> None:
    path = directory / "socket"
    serve(settings=listen(f"unix:{path}"))
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_of_a_server_of_ours_is_a_start_up_error(listen: Listen, serve: Serve, host: str) -> None:
    server = serve(settings=listen("127.0.0.1:0"))
    ended = billing_grpc("serve", settings=listen(f"{host}:{server.port}"))
    assert (ended.returncode, ended.stdout) == (FAILED, "")
    assert f"billing-grpc: cannot listen on {host}:{server.port}: " in ended.stderr
    assert answers(server, server.address)


@pytest.mark.parametrize(("host", "shares"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_port_of_somebody_else_is_a_start_up_error(listen: Listen, host: str, *, shares: bool) -> None:
    with foreign_listener(shares=shares) as port:
        ended = billing_grpc("serve", settings=listen(f"{host}:{port}"))
    assert (ended.returncode, ended.stdout) == (FAILED, "")
    assert f"billing-grpc: cannot listen on {host}:{port}: " in ended.stderr


def test_one_taken_address_of_several_is_a_start_up_error_before_any_is_announced(listen: Listen) -> None:
    with foreign_listener(shares=False) as port:
        ended = billing_grpc("serve", settings=listen("127.0.0.1:0", f"127.0.0.1:{port}"))
    assert (ended.returncode, ended.stdout) == (FAILED, "")
    assert f"cannot listen on 127.0.0.1:{port}: " in ended.stderr


def test_a_taken_metrics_port_is_a_start_up_error(listen: Listen) -> None:
    with foreign_listener(shares=False) as port:
        address = f"127.0.0.1:{port}"
        ended = billing_grpc("serve", settings={**listen("127.0.0.1:0"), "BILLING_GRPC_METRICS_LISTEN": address})
    assert (ended.returncode, ended.stdout) == (FAILED, "")
    assert f"cannot expose metrics on {address}: " in ended.stderr


def test_a_unix_socket_that_is_in_use_is_not_stolen(listen: Listen, serve: Serve, directory: Path) -> None:
    address = f"unix:{directory / 'socket'}"
    server = serve(settings=listen(address))
    ended = billing_grpc("serve", settings=listen(address))
    assert (ended.returncode, ended.stdout) == (FAILED, "")
    assert f"billing-grpc: cannot listen on {address}: another server answers there" in ended.stderr
    assert answers(server, address)


def test_the_socket_that_a_killed_server_left_behind_is_no_obstacle(
    listen: Listen, serve: Serve, directory: Path
) -> None:
    path = directory / "socket"
    assert serve(settings=listen(f"unix:{path}")).stop(signal.SIGKILL) == -signal.SIGKILL
    assert path.exists()
    server = serve(settings=listen(f"unix:{path}"))
    assert answers(server, f"unix:{path}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_stops_the_server_and_frees_its_addresses(
    listen: Listen, serve: Serve, directory: Path, number: signal.Signals
) -> None:
    path = directory / "socket"
    settings = {**listen("127.0.0.1:0", f"unix:{path}"), "BILLING_GRPC_METRICS_LISTEN": "127.0.0.1:0"}
    server = serve(settings=settings, listeners=2)
    ports = [each.laddr.port for each in psutil.Process(server.pid).net_connections() if each.status == "LISTEN"]
    assert len(ports) == 2
    assert server.port in ports
    assert server.stop(number) == 0
    assert [port for port in ports if not refuses(port)] == []
    assert not path.exists()
    assert [record["event"] for record in server.records("stop")] == ["stopping", "stopped"]
