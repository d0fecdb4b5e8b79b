"""The replaced route through a real gateway, as a front end or curl calls it."""

import asyncio
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from billing_grpc.addresses import TcpAddress
from billing_grpc.gateway.run import bound
from tests.support.commands import billing_grpc
from tests.support.gateways import TOKENS, UNKNOWN, Gateway, Site, gateway, old_route, site
from tests.support.polling import PATIENCE, until
from tests.support.servers import Serve
from tests.support.workspaces import add_workspace, stored_mode

KEYS: Final = {"workspace_id", "resolved_mode", "workspace_override", "org_default", "source"}


@pytest.fixture(scope="module")
def http(place: Site) -> Iterator[Gateway]:
    with gateway(place.folder / "unix", *place.upstreams["unix"]) as running:
        yield running


def test_a_workspace_is_read_set_and_cleared_as_before(http: Gateway, workspace: str) -> None:
    inherits = {
        "workspace_id": workspace,
        "resolved_mode": "platform_managed",
        "workspace_override": None,
        "org_default": "platform_managed",
        "source": "constant_fallback",
    }
    byok = {**inherits, "resolved_mode": "byok", "workspace_override": "byok", "source": "workspace_override"}
    assert (http.ask("GET", old_route(workspace)).status, http.ask("GET", old_route(workspace)).json) == (200, inherits)
    changed = http.ask("PUT", old_route(workspace), {"mode": " byok "})
    assert (changed.status, changed.json) == (200, byok)
    assert http.ask("GET", old_route(f"%20{workspace.upper()}%0a")).json == byok
    cleared = http.ask("PUT", old_route(workspace), {"mode": None})
    assert (cleared.status, cleared.json) == (200, inherits)


# id: body, the beginning of the error
WRONG_BODIES: Final[dict[str, tuple[bytes, str]]] = {
    "no body": (b"", "invalid request body"),
    "no json": (b"mode=byok", "invalid request body"),
    "cut short": (b'{"mode": "byok"', "invalid request body"),
    "not utf-8": (b'{"mode": "\xff"}', "invalid request body"),
    "deep": (b"[" * 10_000, "invalid request body"),
    "a list": (b'["byok"]', "invalid request body"),
    "a text": (b'"byok"', "invalid request body"),
    "twice": (b'{"mode": "byok", "mode": null}', "invalid request body"),
    "null": (b"null", "missing required field 'mode' (use null to clear override)"),
    "no mode": (b"{}", "missing required field 'mode' (use null to clear override)"),
    "a typo": (b'{"mod": null}', "missing required field 'mode' (use null to clear override)"),
    "another case": (b'{"Mode": null}', "missing required field 'mode' (use null to clear override)"),
    "a number": (b'{"mode": 2}', "field 'mode' must be"),
    "true": (b'{"mode": true}', "field 'mode' must be"),
    "an object": (b'{"mode": {}}', "field 'mode' must be"),
    "empty": (b'{"mode": ""}', 'unknown billing mode "" (allowed: byok, disabled, platform_managed)'),
    "blank": (b'{"mode": "  "}', 'unknown billing mode "" (allowed'),
    "capitals": (b'{"mode": "BYOK"}', 'unknown billing mode "BYOK" (allowed'),
    "long": (b'{"mode": "%s"}' % (b"x" * 9000), f'unknown billing mode "{"x" * 64}..." (allowed'),
    "half a character": (b'{"mode": "\\ud800"}', 'unknown billing mode "?" (allowed'),
}


@pytest.mark.parametrize(("body", "error"), WRONG_BODIES.values(), ids=WRONG_BODIES)
def test_a_wrong_body_is_refused_and_changes_nothing(
    http: Gateway, module_database_url: str, body: bytes, error: str
) -> None:
    workspace = add_workspace(module_database_url, "disabled")
    answer = http.ask("PUT", old_route(workspace), body)
    assert answer.status == 400
    assert answer.json["error"].startswith(error)
    assert stored_mode(module_database_url, workspace) == "disabled"


@pytest.mark.parametrize("text", ["x", f"{{{UNKNOWN}}}", UNKNOWN.replace("-", ""), "urn:uuid:" + UNKNOWN, "%20"])
def test_an_id_that_is_not_canonical_is_refused(http: Gateway, text: str) -> None:
    for method, body in (("GET", None), ("PUT", {"mode": "byok"})):
        answer = http.ask(method, old_route(text), body)
        assert (answer.status, answer.json) == (400, {"error": "invalid workspace id"})


def test_a_workspace_that_does_not_exist_is_not_found(http: Gateway) -> None:
    for method, body in (("GET", None), ("PUT", {"mode": "byok"})):
        answer = http.ask(method, old_route(UNKNOWN), body)
        assert (answer.status, answer.json) == (
            404,
            {"error": "workspace not found", "reason": "WORKSPACE_NOT_FOUND"},
        )


# id: token, method, status, reason
CALLERS: Final = {
    "no token, get": (None, "GET", 401, "CREDENTIALS_INVALID"),
    "no token, put": (None, "PUT", 401, "CREDENTIALS_INVALID"),
    "an unknown token": ("bgrpc_stranger", "PUT", 401, "CREDENTIALS_INVALID"),
    "a token with a space": ("a b", "PUT", 401, "CREDENTIALS_INVALID"),
    "a token of 15 kB": ("x" * 15_000, "PUT", 401, "CREDENTIALS_INVALID"),
    "a reader that reads": (TOKENS["reader"], "GET", 200, ""),
    "a reader that writes": (TOKENS["reader"], "PUT", 403, "ROLE_DENIED"),
    "a provisioner": (TOKENS["provisioner"], "GET", 403, "ROLE_DENIED"),
}


@pytest.fixture(scope="module", params=["plain", "tls", "mtls", "unix"])
def any_http(request: pytest.FixtureRequest, place: Site) -> Iterator[Gateway]:
    """A gateway over each kind of connection; its own certificate is an admin's."""
    with gateway(place.folder / f"any-{request.param}", *place.upstreams[request.param]) as running:
        yield running


@pytest.mark.parametrize(("token", "method", "status", "reason"), CALLERS.values(), ids=CALLERS)
def test_the_callers_own_credentials_decide_over_every_connection(
    any_http: Gateway, workspace: str, token: str | None, method: str, status: int, reason: str
) -> None:
    answer = any_http.ask(method, old_route(workspace), {"mode": "byok"} if method == "PUT" else None, token=token)
    assert (answer.status, answer.reason) == (status, reason)
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert any_http.ask("GET", old_route(workspace)).json["workspace_override"] is None


def test_a_gateway_before_a_server_under_local_admin_lets_nobody_in(
    serve: Serve, database_url: str, tmp_path: Path
) -> None:
    workspace = add_workspace(database_url)
    server = serve(settings={"DATABASE_URL": database_url})
    with gateway(tmp_path / "gateway", "--address", server.address) as running:
        answer = running.ask("PUT", old_route(workspace), {"mode": "byok"}, token=None)
    assert (answer.status, answer.reason) == (401, "CREDENTIALS_INVALID")
    assert stored_mode(database_url, workspace) is None


def test_a_call_is_logged_by_the_server_under_its_caller_and_its_id(
    http: Gateway, place: Site, module_database_url: str, workspace: str
) -> None:
    answer = http.ask("PUT", old_route(workspace), {"mode": "byok"}, headers={"x-request-id": "from-a-browser"})
    assert answer.headers["x-request-id"] == "from-a-browser"
    line = place.server.logged("call", request_id="from-a-browser")
    assert (line["principal"], line["role"], line["workspace"]) == ("the-admin", "admin", workspace)
    with psycopg.connect(module_database_url) as connection:
        query = "SELECT principal FROM workspace_billing_mode_changes WHERE workspace_id = %s"
        assert connection.execute(query, [workspace]).fetchall() == [("the-admin",)]
    assert http.ask("GET", old_route(workspace)).headers["x-request-id"]


def test_an_etag_guards_a_change(http: Gateway, module_database_url: str, workspace: str) -> None:
    etag = http.ask("GET", old_route(workspace)).headers["etag"]
    changed = http.ask("PUT", old_route(workspace), {"mode": "byok"}, headers={"if-match": etag})
    assert changed.status == 200
    stale = http.ask("PUT", old_route(workspace), {"mode": None}, headers={"if-match": etag})
    assert (stale.status, stale.reason) == (412, "ETAG_STALE")
    assert stale.json["resolved_mode"] == "byok"
    assert set(stale.json) > KEYS
    assert stale.headers["etag"] == changed.headers["etag"] != etag
    assert stored_mode(module_database_url, workspace) == "byok"
    assert http.ask("PUT", old_route(workspace), {"mode": None}, headers={"if-match": "*"}).status == 200


@pytest.mark.parametrize("given", ["", "42", 'W/"42"', '"42", "43"', '"42', '""', '"\x01"', f'"{"4" * 65}"'])
def test_an_if_match_that_cannot_be_checked_changes_nothing(
    http: Gateway, module_database_url: str, workspace: str, given: str
) -> None:
    assert http.ask("PUT", old_route(workspace), {"mode": "byok"}, headers={"if-match": given}).status == 400
    assert stored_mode(module_database_url, workspace) is None


def test_two_etags_in_two_headers_change_nothing(http: Gateway, module_database_url: str, workspace: str) -> None:
    with socket.create_connection(("127.0.0.1", http.process.port), timeout=PATIENCE) as connection:
        host = f"Host: {http.authority}\r\nAuthorization: Bearer {TOKENS['admin']}\r\n"
        head = f"PUT {old_route(workspace)} HTTP/1.1\r\n{host}"
        both = 'If-Match: "0"\r\nIf-Match: "1"\r\nContent-Length: 16\r\n\r\n{"mode": "byok"}'
        connection.sendall((head + both).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert stored_mode(module_database_url, workspace) is None


def test_a_corrupt_override_is_closed_and_shown(http: Gateway, empty_row: str) -> None:
    answer = http.ask("GET", old_route(empty_row)).json
    assert (answer["resolved_mode"], answer["workspace_override"]) == ("platform_managed", "BYOK <b>")


@pytest.fixture
def empty_row(module_database_url: str) -> str:
    """A workspace with a text that its constraint would refuse."""
    with psycopg.connect(module_database_url) as connection:
        connection.execute("ALTER TABLE workspaces DROP CONSTRAINT IF EXISTS workspaces_llm_billing_mode_check")
    return add_workspace(module_database_url, "BYOK <b>")


def test_an_outage_of_the_database_answers_closed(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    down = site(serve, "postgresql://nobody@127.0.0.1:1/none", folder, {"MOLECULE_LLM_BILLING_MODE": "byok"})
    with gateway(tmp_path / "gateway", *down.upstreams["unix"]) as running:
        for method, body in (("GET", None), ("PUT", {"mode": "byok"})):
            answer = running.ask(method, old_route(UNKNOWN), body)
            assert (answer.status, answer.reason) == (503, "DATABASE_UNREACHABLE")
            assert answer.json["safe_default"] == "platform_managed"
            assert answer.json["workspace_id"] == UNKNOWN
            assert "127.0.0.1" not in answer.body.decode()


def test_a_server_that_is_down_answers_closed_and_is_found_again(
    serve: Serve, tmp_path: Path, module_database_url: str
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    before = site(serve, module_database_url, first)
    workspace = add_workspace(module_database_url)
    with gateway(tmp_path / "gateway", *before.upstreams["plain"]) as running:
        assert running.ask("GET", old_route(workspace)).status == 200
        before.server.stop()
        answer = running.ask("GET", old_route(workspace))
        assert (answer.status, answer.reason) == (503, "SERVER_UNREACHABLE")
        assert answer.json["safe_default"] == "platform_managed"
        assert before.server.address.partition(":")[0] not in answer.body.decode()
        again = {
            "BILLING_GRPC_LISTEN": f"{before.server.address},tls://127.0.0.1:0,mtls://127.0.0.1:0,unix:{second / 's'}"
        }
        site(serve, module_database_url, second, again)
        until(lambda: running.ask("GET", old_route(workspace)).status == 200)


@pytest.mark.parametrize("actor", ["a\tb", "x" * 4300, "x" * 129])
def test_an_actor_that_cannot_be_recorded_changes_nothing(
    http: Gateway, module_database_url: str, workspace: str, actor: str
) -> None:
    answer = http.ask("PUT", old_route(workspace), {"mode": "byok"}, headers={"x-billing-actor": actor})
    assert (answer.status, answer.reason) == (400, "TEXT_INVALID")
    assert stored_mode(module_database_url, workspace) is None


def test_other_paths_and_methods_are_refused(http: Gateway) -> None:
    assert http.ask("GET", "/admin/workspaces").status == 404
    assert http.ask("GET", old_route(UNKNOWN) + "/").status == 404
    refused = http.ask("DELETE", old_route(UNKNOWN))
    assert (refused.status, set(refused.headers["allow"].split(", "))) == (405, {"GET", "HEAD", "PUT"})


# id: flags, the exit code, a part of the message
WRONG_FLAGS: Final = {
    "another machine in plain text": (["--address", "billing.internal:50051"], "only over TLS"),
    "a token of its own": (["--token-file", "/dev/null"], "--token-file"),
    "every interface without a name": (["--listen", "0.0.0.0:0"], "--host"),
    "every origin": (["--origin", "*"], "--origin"),
    "no origin": (["--origin", "null"], "--origin"),
    "an origin with a path": (["--origin", "https://a.example/"], "--origin"),
    "a host with a path": (["--host", "a.example/b"], "--host"),
    "a socket": (["--listen", "unix:/tmp/x"], "--listen"),
}


@pytest.mark.parametrize(("flags", "part"), WRONG_FLAGS.values(), ids=WRONG_FLAGS)
def test_wrong_flags_start_nothing(flags: list[str], part: str) -> None:
    ended = billing_grpc("gateway", *flags)
    assert ended.returncode == 2
    assert part in ended.stderr


def test_answers_do_not_wait_for_the_callers_acknowledgement() -> None:
    async def accepted() -> int:
        served = asyncio.get_running_loop().create_future()
        with bound(TcpAddress("127.0.0.1", 0)) as listener:
            async with await asyncio.start_server(lambda _, writer: served.set_result(writer), sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                theirs: asyncio.StreamWriter = await served
                no_delay: int = theirs.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                writer.close()
                theirs.close()
        return no_delay

    assert asyncio.run(accepted())


def test_a_taken_port_is_named(http: Gateway) -> None:
    ended = billing_grpc("gateway", "--listen", http.authority)
    assert ended.returncode == 1
    assert http.authority in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_gateway_without_an_error(place: Site, tmp_path: Path, number: signal.Signals) -> None:
    with gateway(tmp_path / "gateway", *place.upstreams["unix"]) as running:
        assert running.ask("GET", old_route(UNKNOWN)).status == 404
        assert running.process.stop(number) == 0
        assert running.process.stderr == ""


def test_curl_sees_what_the_old_route_answered(curl: str, http: Gateway, workspace: str) -> None:
    def ask(*arguments: str) -> tuple[int, dict[str, Any]]:
        url, token = f"{http.url}{old_route(workspace)}", f"Authorization: Bearer {TOKENS['admin']}"
        command = [curl, "--silent", "--write-out", "\n%{http_code}", "--header", token, *arguments, url]
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
        body, _, status = said.rpartition("\n")
        return int(status), json.loads(body)

    status, answer = ask("--request", "PUT", "--data", '{"mode": "byok"}')
    assert (status, answer["resolved_mode"], answer["source"]) == (200, "byok", "workspace_override")
    assert ask() == (200, answer)
    assert ask("--request", "PUT", "--data", "{}")[0] == 400
    assert ask("--request", "PUT", "--data", '{"mode": null}')[1]["workspace_override"] is None
