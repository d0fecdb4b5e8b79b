"""A server's addresses and its end: what it takes, what it leaves alone, and what it says before it goes."""

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing_grpc.addresses import TcpAddress, UnixAddress
from billing_grpc.errors import ListenError
from billing_grpc.secret_keys import KeyList
from billing_grpc.server.listener import AccessPolicy, RpcServer
from billing_grpc.server.servicer import BillingModeService
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.testing import InMemoryRepository
from tests.support.raw_http2 import EMPTY, NO_WINDOW, connected

ANY_PORT: Final = TcpAddress("127.0.0.1", 0)


New = Callable[..., RpcServer]


@pytest.fixture
async def server() -> AsyncIterator[New]:
    """Makes servers that are stopped after the test, started or not."""
    made = []

    def new(mode: int = 0o600) -> RpcServer:
        servicer = BillingModeService(InMemoryRepository(), lambda: None, KeyList(), 1.0, Metrics())
        made.append(RpcServer(servicer, access_policy=AccessPolicy(local_admin=True, socket_mode=mode)))
        return made[-1]

    yield new
    for each in made:
        await each.stop(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="billing-") as made:
        yield Path(made)


async def test_grpc_itself_does_not_share_a_port(server: New) -> None:
    # Past our own look at the port: two servers of ours that start at the same moment.
    first, second = server(), server()
    (bound,) = await first.start([ANY_PORT])
    assert isinstance(bound, TcpAddress)
    with pytest.raises(ListenError):
        second._bind(bound.target, "plain")  # noqa: SLF001 - the race cannot be had otherwise
    await first.stop(0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_taken_port_is_refused_with_the_systems_words(server: New, host: str) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ListenError, match="Address already in use"):
            await server().start([TcpAddress(host, taken.getsockname()[1])])


async def test_there_is_no_moment_in_which_a_socket_is_open_to_more_than_its_owner(
    server: New, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[int] = []
    chmod = Path.chmod

    def looked_at(path: Path, mode: int) -> None:
        before.append(stat.S_IMODE(path.stat().st_mode))
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", looked_at)
    umask = os.umask(0)
    try:
        serving = server(0o666)
        await serving.start([UnixAddress(f"{folder}/s")])
        assert os.umask(0) == 0
    finally:
        os.umask(umask)
    assert before == [0o600]
    assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o666
    await serving.stop(0)


async def test_a_socket_that_somebody_answers_is_left_to_them(server: New, folder: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as theirs:
        theirs.bind(f"{folder}/s")
        theirs.listen()
        found = (folder / "s").stat().st_ino
        with pytest.raises(ListenError, match="another server answers there"):
            await server().start([UnixAddress(f"{folder}/s")])
        assert (folder / "s").stat().st_ino == found


async def test_a_socket_that_nobody_answers_is_taken(server: New, folder: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as theirs:
        theirs.bind(f"{folder}/s")
    serving = server()
    await serving.start([UnixAddress(f"{folder}/s")])
    await serving.stop(0)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
async def test_what_is_not_a_socket_is_left_where_it_is(server: New, kind: str, folder: Path) -> None:
    path, elsewhere = folder / "s", folder / "elsewhere"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(elsewhere)
        if kind == "link":
            elsewhere.write_text("precious")
    with pytest.raises(ListenError, match="is not a socket"):
        await server().start([UnixAddress(str(path))])
    assert os.path.lexists(path)
    assert kind not in {"file", "link"} or path.read_text() == "precious"


@pytest.mark.parametrize("below", ["missing/s", "file/s"])
async def test_a_folder_that_is_not_there_is_named(server: New, below: str, folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(ListenError, match="there is no folder") as refused:
        await server().start([UnixAddress(f"{folder}/{below}")])
    assert str((folder / below).parent) in str(refused.value)


async def test_a_server_that_stops_says_so_to_who_watches_before_it_goes(server: New) -> None:
    serving = server()
    (bound,) = await serving.start([ANY_PORT])
    assert isinstance(bound, TcpAddress)
    async with grpc.aio.insecure_channel(bound.target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING

        stopping = asyncio.ensure_future(serving.stop(1.0))
        async with asyncio.timeout(5):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await stopping


async def test_a_watcher_that_takes_nothing_stands_in_nobodys_way(server: New) -> None:
    serving = server()
    (bound,) = await serving.start([ANY_PORT])
    assert isinstance(bound, TcpAddress)
    async with connected(bound.target, NO_WINDOW) as deaf:
        deaf.send(deaf.open("/grpc.health.v1.Health/Watch"), EMPTY)
        await deaf.listen(0.3)
        async with asyncio.timeout(5):
            await serving.stop(0.2)


async def test_who_waits_for_a_servers_end_learns_of_it(server: New) -> None:
    serving = server()
    await serving.start([ANY_PORT])
    ended = asyncio.ensure_future(serving.ended())
    await asyncio.sleep(0.1)
    assert not ended.done()
    await serving.stop(0)
    async with asyncio.timeout(5):
        await ended
