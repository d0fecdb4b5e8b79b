"""The Go client administers through a real server, and the example control plane serves the replaced route on top of it."""

import http.client
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import go_module
from tests.support.certificates import Authority
from tests.support.commands import billing_grpc
from tests.support.polling import PATIENCE
from tests.support.ports import free_port
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

ABSENT: Final = "7f1fc6a0-0000-4000-8000-00000000dead"
ADMIN: Final = "admin-of-the-route"
BY_DEFAULT: Final = {
    "org_default": "platform_managed",
    "source": "constant_fallback",
    "resolved_mode": "platform_managed",
}


@pytest.fixture(scope="module")
def go() -> str:
    """The path of the Go toolchain."""
    return go_module.toolchain()


def test_the_go_client_administers_through_a_real_server(go: str, serve: Serve, database_url: str) -> None:
    server = serve(settings={"DATABASE_URL": as_service(database_url)})

    done = go_module.run(
        *(go, "test", "-count=1", "-v", "-run=^TestARealServer$", "./billing"),
        REAL_SERVER=server.address,
        REAL_WORKSPACE=add_workspace(database_url),
    )

    assert "--- PASS: TestARealServer" in done.stdout, done.stdout + done.stderr


class ControlPlane:
    """The example, running."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, method: str, workspace: str, body: str | None = None, token: str | None = ADMIN) -> tuple[int, Any]:
        """Send one request; return the status and the JSON of the answer."""
        connection = http.client.HTTPConnection(self._address, timeout=PATIENCE)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request(method, f"/admin/workspaces/{workspace}/llm-billing-mode", body, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text)


@pytest.fixture(scope="module")
def program(go: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built, in a folder with the token of its callers."""
    made = tmp_path_factory.mktemp("controlplane") / "controlplane"
    built = go_module.run(go, "build", "-o", str(made), "./examples/controlplane")
    assert built.returncode == 0, built.stderr
    (made.parent / "admin").write_text(ADMIN + "\n")
    return made


@contextmanager
def running(program: Path, *flags: str) -> Iterator[ControlPlane]:
    """Start the example; stop it in the end."""
    command = [str(program), "-listen=127.0.0.1:0", f"-admin-token-file={program.parent / 'admin'}", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        try:
            assert said.startswith("listening on "), said
            yield ControlPlane(said.removeprefix("listening on ").strip())
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.fixture(scope="module")
def control_plane(program: Path, module_serve: Serve, module_database_url: str) -> Iterator[ControlPlane]:
    """The example over TLS to a real server, with a token of its own."""
    server, flags = start_server(program.parent, module_serve, module_database_url)
    with running(program, f"-billing=localhost:{server.port}", *flags) as started:
        yield started


def start_server(folder: Path, serve: Serve, database_url: str) -> tuple[Server, list[str]]:
    """A server that lets one token in over TLS, and the flags of the example for it."""
    authority = Authority.new("servers")
    certificate, key = authority.issue(dns=("localhost",)).write(folder, "server")
    (folder / "ca.crt").write_bytes(authority.pem)
    made = json.loads(billing_grpc("token", "new", "--name", "controlplane", "--role", "admin", "--json").stdout)
    (folder / "tokens.toml").write_text(made["entry"])
    (folder / "token").write_text(made["token"])
    server = serve(
        settings={
            "DATABASE_URL": as_service(database_url),
            "BILLING_GRPC_LOCAL_ADMIN": None,
            "BILLING_GRPC_LISTEN": "tls://127.0.0.1:0",
            "BILLING_GRPC_TOKENS_FILE": folder / "tokens.toml",
            "BILLING_GRPC_TLS_CERT": certificate,
            "BILLING_GRPC_TLS_KEY": key,
        }
    )
    return server, [f"-token-file={folder / 'token'}", f"-ca-file={folder / 'ca.crt'}"]


def test_the_example_sets_shows_and_clears_as_the_route_did(
    control_plane: ControlPlane, module_database_url: str
) -> None:
    workspace = add_workspace(module_database_url)
    cleared = {"workspace_id": workspace, "workspace_override": None, **BY_DEFAULT}
    own = {
        "workspace_id": workspace,
        "resolved_mode": "byok",
        "workspace_override": "byok",
        "org_default": "platform_managed",
        "source": "workspace_override",
    }

    assert control_plane.ask("GET", workspace) == (200, cleared)
    assert control_plane.ask("PUT", workspace, '{"mode": " byok "}') == (200, own)
    assert control_plane.ask("GET", f"%20{workspace}%20") == (200, own)
    assert control_plane.ask("PUT", workspace, '{"mode": null}') == (200, cleared)
    assert control_plane.ask("GET", workspace) == (200, cleared)


def test_the_example_answers_for_a_workspace_that_does_not_exist_as_the_route_did(
    control_plane: ControlPlane,
) -> None:
    inherited = {"workspace_id": ABSENT, "workspace_override": None, **BY_DEFAULT}

    assert control_plane.ask("GET", ABSENT) == (200, inherited)
    assert control_plane.ask("PUT", ABSENT, '{"mode": "byok"}') == (404, {"error": "workspace not found"})
    assert control_plane.ask("PUT", ABSENT, '{"mode": null}') == (404, {"error": "workspace not found"})


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        pytest.param("{}", "missing required field 'mode' (use null to clear override)", id="no field"),
        pytest.param("null", "missing required field 'mode' (use null to clear override)", id="null as the body"),
        pytest.param(
            '{"Mode": null}', "missing required field 'mode' (use null to clear override)", id="another field"
        ),
        pytest.param('{"mode": 1}', "'mode' must be a string or null", id="a number"),
        pytest.param('{"mode": " "}', 'unknown billing mode "" (allowed:', id="blank"),
        pytest.param('{"mode": "BYOK"}', 'unknown billing mode "BYOK" (allowed:', id="another case"),
        pytest.param("[]", "the body is no JSON object", id="a list"),
        pytest.param("{", "the body is no JSON object", id="half a body"),
        pytest.param(f'{{"mode": "{"x" * 70_000}"}}', "the body cannot be read, or is too long", id="too long"),
    ],
)
def test_the_example_refuses_what_the_route_refused(control_plane: ControlPlane, body: str, problem: str) -> None:
    status, answer = control_plane.ask("PUT", ABSENT, body)

    assert status == 400
    assert answer["error"].startswith(problem)


@pytest.mark.parametrize("workspace", [ABSENT.upper(), "%7B" + ABSENT + "%7D", "none", ABSENT.replace("-", "")])
def test_the_example_refuses_ids_as_the_route_did(control_plane: ControlPlane, workspace: str) -> None:
    assert control_plane.ask("GET", workspace) == (400, {"error": "invalid workspace id"})
    assert control_plane.ask("PUT", workspace, "{}") == (400, {"error": "invalid workspace id"})


@pytest.mark.parametrize("token", [None, "", "another", ADMIN + "x"])
def test_the_example_lets_nobody_in_without_the_token(control_plane: ControlPlane, token: str | None) -> None:
    assert control_plane.ask("GET", ABSENT, token=token) == (401, {"error": "unauthorized"})
    assert control_plane.ask("PUT", ABSENT, '{"mode": "byok"}', token=token) == (401, {"error": "unauthorized"})


def test_without_the_service_the_example_answers_with_the_safe_default(program: Path) -> None:
    safe = {"safe_default": "platform_managed", "workspace_id": ABSENT}
    with running(program, f"-billing=localhost:{free_port()}") as alone:
        status, shown = alone.ask("GET", ABSENT)
        written, failed = alone.ask("PUT", ABSENT, '{"mode": "disabled"}')

    assert (status, written) == (500, 500)
    assert shown == {"error": "failed to resolve billing mode", "detail": "SERVER_UNREACHABLE", **safe}
    assert failed == {"error": "failed to set billing mode", "detail": failed["detail"], **safe}


def test_the_example_does_not_start_without_a_token_for_its_callers(program: Path) -> None:
    ended = subprocess.run([str(program)], capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert ended.returncode != 0
    assert "-admin-token-file" in ended.stderr
