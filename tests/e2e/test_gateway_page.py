"""The page of the gateway as it is served, and how a browser is let in under local admin; without a browser."""

import base64
import hashlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from billing_grpc.cli.gateway_process import gateway_beside
from tests.support.commands import billing_grpc
from tests.support.gateways import TOKENS, UNKNOWN, Gateway, gateway
from tests.support.polling import until
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace

RESOLVE: Final = "/molecule.billing.v1.BillingModeService/ResolveBillingMode"
SET: Final = "/molecule.billing.v1.BillingModeService/SetWorkspaceBillingMode"
MAX_BYTES: Final = 60_000


@pytest.fixture(scope="module")
def server(module_serve: Serve, module_database_url: str) -> Server:
    return module_serve(settings={"DATABASE_URL": module_database_url})


@pytest.fixture
def http(server: Server, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(tmp_path / "gateway", "--address", server.address, "--local-admin") as running:
        yield running


def secrets(process: Server) -> list[str]:
    """The secrets of the addresses that were printed so far, after the first."""
    pattern = rf"^page: {re.escape('http://127.0.0.1:')}\d+/#(\S+)$"
    return until(lambda: re.findall(pattern, process.stdout, re.MULTILINE))


def let_in(http: Gateway, secret: str) -> str:
    answer = http.ask("POST", "/session", {"secret": secret}, token=None, headers={"origin": http.url})
    assert answer.status == 200
    return str(answer.json["token"])


def test_the_page_is_one_small_file_that_needs_nothing_else(http: Gateway) -> None:
    answer = http.ask("GET", "/", token=None)
    html = answer.body.decode()
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert len(answer.body) <= MAX_BYTES
    assert not re.findall(r"https?://|//[a-z]|src=|@import|url\(|<iframe|<object|<base", html)
    assert not re.findall(r"\son\w+=|\sstyle=|innerHTML|document\.write|localStorage|document\.cookie|eval\(", html)
    assert "set-cookie" not in answer.headers


def test_the_policy_of_the_page_admits_its_own_parts_alone(http: Gateway) -> None:
    answer = http.ask("GET", "/", token=None)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    for element in ("script", "style"):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", answer.body.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{element}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_secret_lets_one_page_in_and_the_next_one_is_printed(http: Gateway, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url)
    (first,) = secrets(http.process)
    assert http.ask("POST", RESOLVE, {}, token=first).status == 401
    token = let_in(http, first)
    asked = {"workspaceId": workspace, "mode": "BILLING_MODE_BYOK"}
    assert http.ask("POST", SET, asked, token=token).status == 200
    assert http.ask("POST", "/session", {"secret": first}, token=None).status == 403
    until(lambda: len(secrets(http.process)) == 2)
    second = secrets(http.process)[1]
    assert let_in(http, second) not in {token, first, second}
    assert http.ask("POST", RESOLVE, {}, token=token).status == 200


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"secret": null}', b'{"secret": ""}', b'{"secret": "caf\xc3\xa9"}']
)
def test_a_wrong_secret_lets_nobody_in(http: Gateway, body: bytes) -> None:
    assert http.ask("POST", "/session", body, token=None).status == 403
    assert http.ask("POST", "/session", b'{"secret": "' + b"x" * 5000 + b'"}', token=None).status == 403
    let_in(http, *secrets(http.process))


@pytest.mark.parametrize(
    "headers", [{"host": "stranger.example"}, {"origin": "https://stranger.example"}, {"origin": "null"}]
)
def test_another_host_or_site_gets_no_token_with_the_right_secret(http: Gateway, headers: dict[str, str]) -> None:
    (secret,) = secrets(http.process)
    assert http.ask("POST", "/session", {"secret": secret}, token=None, headers=headers).status in {403, 421}
    let_in(http, secret)


@pytest.mark.parametrize("token", [None, "", "x", TOKENS["admin"]])
def test_under_local_admin_only_a_page_that_was_let_in_is_local(http: Gateway, token: str | None) -> None:
    let_in(http, *secrets(http.process))
    assert http.ask("POST", RESOLVE, {}, token=token).status == 401
    assert http.ask("PUT", f"/admin/workspaces/{UNKNOWN}/llm-billing-mode", {"mode": None}, token=token).status == 401


def test_sixteen_pages_may_be_open_and_the_oldest_is_let_out(http: Gateway) -> None:
    tokens: list[str] = []
    while len(tokens) < 17:
        until(lambda: len(secrets(http.process)) > len(tokens))
        tokens.append(let_in(http, secrets(http.process)[-1]))
    statuses = [http.ask("POST", RESOLVE, {}, token=token).status for token in tokens]
    assert statuses == [401, *[200] * 16]


def test_without_local_admin_there_is_no_way_in_but_a_token(server: Server, tmp_path: Path) -> None:
    with gateway(tmp_path / "gateway", "--address", server.address) as running:
        assert running.ask("POST", "/session", {"secret": ""}, token=None).status == 404
        assert running.ask("GET", "/", token=None).status == 200
        assert "page:" not in running.process.stdout


@pytest.mark.parametrize(
    "flags",
    [["--listen", "0.0.0.0:0", "--host", "a.example"], ["--address", "tls://billing.example:50051"]],
    ids=["listening everywhere", "another machine"],
)
def test_local_admin_is_for_one_machine(flags: list[str]) -> None:
    ended = billing_grpc("gateway", "--local-admin", *flags)
    assert ended.returncode == 2
    assert "--local-admin" in ended.stderr


def test_a_server_starts_its_page_and_takes_it_along_when_it_ends(serve: Serve, module_database_url: str) -> None:
    server = serve("--page", "127.0.0.1:0", settings={"DATABASE_URL": module_database_url})
    (secret,) = secrets(server)
    http = Gateway(server, server.addresses[1])
    assert http.ask("POST", RESOLVE, {}, token=let_in(http, secret)).status == 200
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(ConnectionError):  # refused or reset
        until(lambda: http.ask("GET", "/", token=None).status != 200)


def test_a_page_runs_no_code_of_the_folder_it_is_started_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("billing_grpc", "uvicorn"):
        (tmp_path / f"{name}.py").write_text("open('taken', 'w')")
    monkeypatch.chdir(tmp_path)
    with gateway_beside("127.0.0.1:0", local_admin=True):
        pass  # the end waits until the gateway has loaded its modules and has ended
    assert not (tmp_path / "taken").exists()


def test_a_page_that_cannot_start_stops_no_server(serve: Serve, module_database_url: str, http: Gateway) -> None:
    server = serve("--page", http.authority, settings={"DATABASE_URL": module_database_url})
    until(lambda: http.authority in server.stderr)
    assert server.resolve().resolved_mode
    assert server.stop() == 0


def test_a_server_with_tokens_has_a_page_that_asks_for_one(
    serve: Serve, module_database_url: str, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        f'[[principal]]\nname = "a"\nrole = "admin"\ntoken_sha256 = ["{hashlib.sha256(b"t").hexdigest()}"]\n'
    )
    settings = {
        "DATABASE_URL": module_database_url,
        "BILLING_GRPC_LOCAL_ADMIN": None,
        "BILLING_GRPC_TOKENS_FILE": tokens,
    }
    server = serve("--page", "127.0.0.1:0", settings=settings, listeners=2)
    http = Gateway(server, server.addresses[1])
    assert [http.ask("POST", RESOLVE, {}, token=token).status for token in ("t", "u", None)] == [200, 401, 401]
    assert "page:" not in server.stdout
