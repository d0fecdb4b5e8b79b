"""The commands for people at a terminal, against a live server: what they print and how they exit."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import pytest

from tests.e2e.conftest import Serve, Server, add_workspace, as_service, billing_grpc

OK, REFUSED, USAGE, UNAVAILABLE = 0, 1, 2, 3
UNKNOWN: Final = "5f0e9b0e-0000-4000-8000-000000000000"
AT_NEXT_START: Final = "; the change takes effect when the workspace next starts.\n"

# id: stored mode, arguments before and after the id, standard output
ANSWERS: Final[dict[str, tuple[str | None, str, list[str], str]]] = {
    "resolve an override": ("byok", "resolve", [], "byok  (workspace_override)\nThe workspace's own mode is byok.\n"),
    "resolve what inherits": (
        None,
        "resolve",
        [],
        "disabled  (org_default)\nThe workspace has no mode of its own, and the organisation's default is disabled.\n",
    ),
    "get": (
        "platform_managed",
        "get",
        [],
        "platform_managed  (workspace_override)\nThe workspace's own mode is platform_managed.\n",
    ),
    "set": (
        "platform_managed",
        "set",
        ["byok", "--reason", "their own key"],
        "byok  (workspace_override)\nThe workspace's own mode is byok.\nIt was platform_managed" + AT_NEXT_START,
    ),
    "set what is set": (
        "byok",
        "set",
        ["byok"],
        "byok  (workspace_override)\nThe workspace's own mode is byok.\nIt was byok" + AT_NEXT_START,
    ),
    "inherit": (
        "byok",
        "inherit",
        [],
        "disabled  (org_default)\n"
        "The workspace has no mode of its own, and the organisation's default is disabled.\n"
        "It was byok" + AT_NEXT_START,
    ),
}

# id: arguments, exit code, words on standard error
FAILURES: Final[dict[str, tuple[list[str], int, str]]] = {
    "get an unknown workspace": (["get", UNKNOWN], REFUSED, "NOT_FOUND: there is no workspace with this id"),
    "a malformed id": (["resolve", "team-a"], REFUSED, "INVALID_ARGUMENT: workspace_id: must be a UUID"),
    "a reason of two lines": (["inherit", UNKNOWN, "--reason", "a\nb"], REFUSED, "INVALID_ARGUMENT: reason: "),
    "no id": (["resolve"], USAGE, "Missing argument 'WORKSPACE_ID'"),
    "a mode that is none": (["set", UNKNOWN, "BYOK"], USAGE, "'BYOK' is not one of"),
    "an unknown command": (["clear", UNKNOWN], USAGE, "No such command 'clear'"),
}


@pytest.fixture(scope="module")
def server(module_serve: Serve, module_database_url: str) -> Server:
    return module_serve(
        settings={"DATABASE_URL": as_service(module_database_url), "MOLECULE_LLM_BILLING_MODE": "disabled"}
    )


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that is taken and does not answer."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def asked(server: Server, *arguments: str) -> str:
    ended = billing_grpc("--address", server.address, *arguments)
    assert (ended.returncode, ended.stderr) == (OK, "")
    return ended.stdout


@pytest.mark.parametrize(("mode", "command", "more", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_reads_as_mode_source_and_reason(
    server: Server, module_database_url: str, mode: str | None, command: str, more: list[str], expected: str
) -> None:
    assert asked(server, command, add_workspace(module_database_url, mode), *more) == expected


def test_an_answer_can_be_had_as_json(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url, "platform_managed")

    def parsed(*arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(asked(server, *arguments, "--json"))
        return answer

    before = parsed("resolve", workspace)["resolution"]
    changed = parsed("set", workspace, "byok")
    assert changed["previous"] == before
    assert changed["billingMode"]["resolution"]["resolvedMode"] == "BILLING_MODE_BYOK"
    assert parsed("get", workspace)["billingMode"] == changed["billingMode"]
    assert parsed("inherit", workspace)["previous"] == changed["billingMode"]["resolution"]
    assert parsed("resolve", workspace)["resolution"]["source"] == "BILLING_MODE_SOURCE_ORG_DEFAULT"


def test_an_empty_id_asks_for_a_workspace_that_does_not_exist_yet(server: Server) -> None:
    assert asked(server, "resolve", "").startswith("disabled  (org_default)\nThe workspace does not exist yet")


@pytest.mark.parametrize(("arguments", "code", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_says_why(server: Server, arguments: list[str], code: int, words: str) -> None:
    ended = billing_grpc("--address", server.address, *arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert words in ended.stderr


@pytest.mark.parametrize("command", [["resolve", UNKNOWN], ["set", UNKNOWN, "byok", "--json"]], ids=lambda c: c[0])
def test_a_server_that_cannot_be_reached_is_another_exit_code(nobody: str, command: list[str]) -> None:
    ended = billing_grpc("--address", nobody, *command)
    assert (ended.returncode, ended.stdout) == (UNAVAILABLE, "")
    # The policy repeats the call, and its deadline may come first.
    assert ended.stderr.startswith(("billing-grpc: UNAVAILABLE: ", "billing-grpc: DEADLINE_EXCEEDED: "))


def test_without_its_database_a_decision_is_closed_and_administration_unavailable(
    serve: Serve, empty_database_url: str
) -> None:
    server = serve(settings={"DATABASE_URL": empty_database_url, "MOLECULE_LLM_BILLING_MODE": "byok"})
    said = asked(server, "resolve", UNKNOWN)
    assert said.startswith("platform_managed  (constant_fallback)\n")
    assert "could not be read (SCHEMA_NOT_READY)" in said
    for command in (["get", UNKNOWN], ["set", UNKNOWN, "byok"]):
        ended = billing_grpc("--address", server.address, *command)
        assert (ended.returncode, ended.stdout) == (UNAVAILABLE, "")
        assert "run: billing-grpc migrate up" in ended.stderr


def test_an_argument_that_is_no_text_is_wrong_usage() -> None:
    ended = subprocess.run(
        [sys.executable.encode(), b"-m", b"billing_grpc", b"resolve", b"\xff"], capture_output=True, check=False
    )
    assert ended.returncode == 2
    assert b"must be valid UTF-8" in ended.stderr
