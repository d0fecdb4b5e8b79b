"""What a real gateway refuses before anything reads it: foreign hosts and pages, large, slow and ambiguous requests."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import pytest

from tests.support.gateways import TOKENS, UNKNOWN, Gateway, Site, gateway, old_route
from tests.support.polling import PATIENCE
from tests.support.workspaces import stored_mode

ORIGIN: Final = "https://console.example"
STRANGER: Final = "https://stranger.example"


@pytest.fixture(scope="module")
def http(place: Site) -> Iterator[Gateway]:
    with gateway(place.folder / "unix", *place.upstreams["unix"], "--origin", ORIGIN) as running:
        yield running


def test_pages_of_a_listed_origin_may_call(http: Gateway, workspace: str) -> None:
    asks = {"origin": ORIGIN, "access-control-request-method": "PUT"}
    asks["access-control-request-headers"] = "authorization,content-type,if-match"
    preflight = http.ask("OPTIONS", old_route(workspace), token=None, headers=asks)
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert "if-match" in preflight.headers["access-control-allow-headers"].lower()
    answer = http.ask("PUT", old_route(workspace), {"mode": "byok"}, headers={"origin": ORIGIN})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "etag" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert http.ask("GET", old_route(workspace), headers={"origin": http.url}).status == 200
    refused = http.ask("GET", old_route(workspace), token=None, headers={"origin": ORIGIN})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


STRANGE_ORIGINS: Final = [
    STRANGER,
    "null",
    "http://console.example",
    "https://console.example:444",
    "https://console.example.evil",
]


@pytest.mark.parametrize("origin", STRANGE_ORIGINS)
def test_a_page_of_another_origin_changes_nothing(
    http: Gateway, module_database_url: str, workspace: str, origin: str
) -> None:
    asks = {"origin": origin, "access-control-request-method": "PUT", "access-control-request-headers": "authorization"}
    for answer in (
        http.ask("OPTIONS", old_route(workspace), token=None, headers=asks),
        http.ask("PUT", old_route(workspace), {"mode": "byok"}, headers={"origin": origin}),
    ):
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
    assert stored_mode(module_database_url, workspace) is None


@pytest.mark.parametrize(
    "host", ["stranger.example", "127.0.0.1", "localhost:1", "localhost:{port}.stranger.example", ""]
)
def test_a_request_for_another_host_changes_nothing(
    http: Gateway, module_database_url: str, workspace: str, host: str
) -> None:
    headers = {"host": host.format(port=http.process.port)}
    assert http.ask("PUT", old_route(workspace), {"mode": "byok"}, headers=headers).status == 421
    assert stored_mode(module_database_url, workspace) is None


def test_a_gateway_on_another_address_of_loopback_answers_at_what_it_prints(place: Site, tmp_path: Path) -> None:
    flags = (*place.upstreams["unix"], "--listen", "127.0.0.2:0")
    with gateway(tmp_path / "gateway", *flags) as running:
        address = running.process.address.removeprefix("http://")
        with closing(HTTPConnection(address, timeout=30)) as connection:
            connection.request("GET", "/")
            assert connection.getresponse().status == 200


def test_a_name_that_the_operator_gives_is_served(place: Site, tmp_path: Path, workspace: str) -> None:
    named = ("--host", "Billing.example", "--host", "other.example:8443")
    with gateway(tmp_path / "gateway", *place.upstreams["unix"], *named) as running:
        statuses = {
            host: running.ask("GET", old_route(workspace), headers={"host": host}).status
            for host in ("billing.example", "BILLING.example:80", "other.example:8443", "other.example")
        }
        page = running.ask(
            "GET", old_route(workspace), headers={"host": "billing.example", "origin": "https://billing.example"}
        )
    assert list(statuses.values()) == [200, 200, 200, 421]
    assert page.status == 200


def test_a_body_of_ten_megabytes_is_refused(http: Gateway, module_database_url: str, workspace: str) -> None:
    body = b'{"mode": "byok", "x": "' + b"x" * 10_000_000 + b'"}'
    with socket.create_connection(("127.0.0.1", http.process.port), timeout=PATIENCE) as connection:
        host = f"Host: {http.authority}\r\nAuthorization: Bearer {TOKENS['admin']}\r\n"
        head = f"PUT {old_route(workspace)} HTTP/1.1\r\n{host}"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    middling = http.ask("PUT", old_route(workspace), b'{"mode": "byok", "x": "' + b"x" * 100_000 + b'"}')
    assert middling.status == 413
    assert stored_mode(module_database_url, workspace) is None


def test_a_header_that_is_not_ascii_is_refused(http: Gateway, workspace: str) -> None:
    with socket.create_connection(("127.0.0.1", http.process.port), timeout=PATIENCE) as connection:
        head = (
            f"GET {old_route(workspace)} HTTP/1.1\r\nHost: {http.authority}\r\nAuthorization: Bearer caf\u00e9\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_body_with_two_lengths_ends_the_connection(http: Gateway, module_database_url: str, workspace: str) -> None:
    host = f"Host: {http.authority}\r\nAuthorization: Bearer {TOKENS['admin']}\r\n"
    inner = f'PUT {old_route(workspace)} HTTP/1.1\r\n{host}Content-Length: 16\r\n\r\n{{"mode": "byok"}}'
    outer = f"PUT {old_route(workspace)} HTTP/1.1\r\n{host}Content-Length: {len(inner) + 5}\r\n"
    with socket.create_connection(("127.0.0.1", http.process.port), timeout=PATIENCE) as connection:
        connection.sendall(f"{outer}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}".encode())
        received = b""
        while piece := connection.recv(1000):
            received += piece
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert stored_mode(module_database_url, workspace) is None


def test_no_answer_may_be_kept_or_taken_for_another_type(http: Gateway, workspace: str) -> None:
    for answer in (
        http.ask("GET", old_route(workspace)),
        http.ask("GET", "/x"),
        http.ask("GET", "/x", headers={"host": "x"}),
    ):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers


def test_a_request_that_does_not_arrive_ends(http: Gateway) -> None:
    where, ends = ("127.0.0.1", http.process.port), time.monotonic() + 30
    head = f"PUT {old_route(UNKNOWN)} HTTP/1.1\r\nHost: {http.authority}\r\n".encode()
    with ExitStack() as stack:
        silent, slow, bodiless = (stack.enter_context(socket.create_connection(where, timeout=30)) for _ in range(3))
        slow.sendall(head)
        bodiless.sendall(head + b'Content-Length: 16\r\n\r\n{"mode": ')
        assert (silent.recv(1), slow.recv(1)) == (b"", b"")
        assert bodiless.recv(100).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() < ends


def test_a_caller_that_reads_no_answer_is_cut_off(http: Gateway) -> None:
    asked = f"GET / HTTP/1.1\r\nHost: {http.authority}\r\n\r\n".encode() * 1000
    with (
        socket.create_connection(("127.0.0.1", http.process.port), timeout=30) as connection,
        suppress(ConnectionError),
    ):
        # Sending blocks once the gateway waits for this reader; then it fails in time, or the test fails at its timeout.
        while True:
            connection.sendall(asked)
