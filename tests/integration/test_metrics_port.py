"""The metrics port under clients that mean no good: scrapes are answered, and nothing is held for ever."""

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Gauge

from billing_grpc import metrics_port
from billing_grpc.addresses import TcpAddress


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(metrics_port._Handler, "timeout", 1.0)  # noqa: SLF001 - five seconds would be waited for in vain
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


@pytest.mark.parametrize(
    "said", [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\ncontent-length: 9\r\n"]
)
def test_a_silent_client_is_hung_up_on(said: bytes, port: int, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(said)
        assert client.recv(1) == b""
    assert scrape(port)
    assert capfd.readouterr().err == ""


def test_a_scrape_is_answered_under_more_connections_than_there_are_places(port: int) -> None:
    with ExitStack() as stack:
        held = connections(port, 3 * metrics_port.MAX_CONNECTIONS, stack)
        assert "told 1.0" in scrape(port)
        assert held[0].recv(1) == b""  # the oldest gave way


def test_clients_that_send_a_byte_now_and_then_give_way(port: int) -> None:
    with ExitStack() as stack:
        held = connections(port, metrics_port.MAX_CONNECTIONS, stack)
        until = time.monotonic() + 2  # longer than silence is put up with
        while time.monotonic() < until:
            for client in held:
                client.sendall(b"x")
            time.sleep(0.3)
        assert "told 1.0" in scrape(port)


def test_an_address_that_is_taken_is_an_error(port: int) -> None:
    with (
        pytest.raises(OSError, match="in use"),
        metrics_port.exposed(TcpAddress("127.0.0.1", port), CollectorRegistry()),
    ):
        pass
