"""Ports that workers share: held for them from the first moment, and for nobody else."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Final

import pytest

from billing_grpc.addresses import TcpAddress
from billing_grpc.errors import ListenError
from billing_grpc.server.net.ports import reserved

HOSTS: Final = ["127.0.0.1", "0.0.0.0", "localhost", "::1", "::"]  # noqa: S104 - nothing is served there

SHARES, REUSES = socket.SO_REUSEPORT, socket.SO_REUSEADDR

Join = Callable[..., socket.socket]


@pytest.fixture
def join() -> Iterator[Join]:
    """Makes sockets that listen, with such options, and are closed after the test."""
    with ExitStack() as stack:

        def new(address: TcpAddress, *options: int) -> socket.socket:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            made = stack.enter_context(closing(socket.socket(family)))
            for option in options:
                made.setsockopt(socket.SOL_SOCKET, option, 1)
            made.bind((address.host, address.port))
            made.listen()
            return made

        yield new


@pytest.mark.parametrize("host", HOSTS)
def test_workers_get_in_and_nobody_else_does(host: str, join: Join) -> None:
    with reserved([TcpAddress(host, 0)]) as (held,):
        assert held.port > 0
        with pytest.raises(OSError, match="Address already in use"):
            join(held)
        with pytest.raises(OSError, match="Address already in use"):
            join(held, REUSES)
        join(held, REUSES, SHARES)
        join(held, REUSES, SHARES)


def test_nobody_is_connected_to_the_one_who_holds(join: Join) -> None:
    with reserved([TcpAddress("127.0.0.1", 0)]) as (held,):
        with closing(socket.socket()) as early:
            assert early.connect_ex((held.host, held.port)) != 0
        worker = join(held, REUSES, SHARES)
        for _ in range(20):
            with closing(socket.create_connection((held.host, held.port), timeout=5)):
                worker.accept()[0].close()


def test_every_address_of_this_machine_means_the_old_ones_too(join: Join) -> None:
    with reserved([TcpAddress("::", 0)]) as (held,):
        for host in ("0.0.0.0", "127.0.0.1"):  # noqa: S104 - nothing is served there
            with pytest.raises(OSError, match="Address already in use"):
                join(TcpAddress(host, held.port), REUSES)


def test_of_two_that_want_a_port_one_is_refused() -> None:
    with (
        reserved([TcpAddress("127.0.0.1", 0)]) as (held,),
        pytest.raises(ListenError, match=f"cannot listen on {held}: Address already in use"),
        reserved([held]),
    ):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_stranger_who_shares_is_not_joined(join: Join, host: str) -> None:
    port = join(TcpAddress("127.0.0.1", 0), REUSES, SHARES).getsockname()[1]
    with pytest.raises(ListenError, match="Address already in use"), reserved([TcpAddress(host, port)]):
        pass


def test_a_name_that_nobody_has_is_refused() -> None:
    with (
        pytest.raises(ListenError, match=r"cannot listen on nobody\.invalid:0: "),
        reserved([TcpAddress("nobody.invalid", 0)]),
    ):
        pass


def test_connections_that_linger_are_no_obstacle(join: Join) -> None:
    server = join(TcpAddress("127.0.0.1", 0), REUSES)
    address = TcpAddress("127.0.0.1", server.getsockname()[1])
    with closing(socket.create_connection((address.host, address.port), timeout=5)) as client:
        server.accept()[0].close()  # who closes first is the one whose side lingers
        assert client.recv(1) == b""
    server.close()
    with pytest.raises(OSError, match="Address already in use"):
        join(address)
    with reserved([address]) as (held,):
        assert held == address
        join(held, REUSES, SHARES)


def test_an_address_that_is_listed_twice_is_refused() -> None:
    with reserved([TcpAddress("127.0.0.1", 0)]) as (free,):
        pass
    with pytest.raises(ListenError, match=f"cannot listen on {free}: "), reserved([free, free]):
        pass
    with reserved([free]) as (held,):  # nothing of the failed attempt is left
        assert held == free


@pytest.mark.parametrize("port", [0, 50051])
def test_an_address_of_another_machine_is_named(port: int) -> None:
    elsewhere = TcpAddress("192.0.2.1", port)
    with pytest.raises(ListenError, match=f"cannot listen on {elsewhere}: "), reserved([elsewhere]):
        pass
