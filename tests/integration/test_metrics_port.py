"""The metrics port under clients that mean no good: scrapes are answered, and nothing is held for ever."""

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Gauge

from billing_grpc.addresses import TcpAddress
from billing_grpc.server.telemetry import metrics_port


@pytest.fixture
def port() -> Iterator[int]:
    registry = CollectorRegistry()
    Gauge("told", "what is told", registry=registry).set(1)
    with metrics_port.exposed(TcpAddress("127.0.0.1", 0), registry) as port:
        yield port


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        text: bytes = response.read()
    return text.decode()


def connections(port: int, number: int, stack: ExitStack) -> list[socket.socket]:
    return [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(number)]


def test_silent_clients_are_hung_up_on_without_a_word(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack:
        silent = connections(port, 3, stack)
        silent[1].sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        silent[2].sendall(b"\xff\x00")
        for client in silent:
            client.settimeout(2 * metrics_port.IDLE_SECONDS)
            assert client.recv(1) == b""
    assert scrape(port)
    assert capfd.readouterr().err == ""


def test_of_more_connections_than_there_are_places_the_oldest_give_way(port: int) -> None:
    with ExitStack() as stack:
        held = connections(port, 3 * metrics_port.MAX_CONNECTIONS, stack)
        assert "told 1.0" in scrape(port)
        held[0].settimeout(metrics_port.IDLE_SECONDS / 2)  # sooner than for its silence
        assert held[0].recv(1) == b""


def test_an_address_that_is_taken_is_an_error(port: int) -> None:
    with (
        pytest.raises(OSError, match="in use"),
        metrics_port.exposed(TcpAddress("127.0.0.1", port), CollectorRegistry()),
    ):
        pass
