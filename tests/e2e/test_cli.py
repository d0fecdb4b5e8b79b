"""The commands for people at a terminal, against a live server: what they print and how they exit."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
import pytest

from billing_grpc.cli.session import describe, exit_code
from billing_grpc.errors import (
    AnswerInvalid,
    BillingError,
    DatabaseTimeout,
    EtagStale,
    FieldViolation,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    ServerRefused,
    ServerUnreachable,
    Unauthenticated,
    WorkspaceNotFound,
)
from billing_grpc.provision import MODE_VARIABLES
from billing_grpc.secret_keys import KeyList
from tests.support.commands import billing_grpc
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

OK, REFUSED, USAGE, UNAVAILABLE = 0, 1, 2, 3

BLOCKED_KEYS = tuple(sorted(KeyList().names))
UNKNOWN: Final = "5f0e9b0e-0000-4000-8000-000000000000"
CHANGE_FIELDS: Final = {
    *("change_id", "workspace_id", "change_time", "previous_override", "new_override"),
    *("principal", "database_user", "reason", "request_id", "actor", "kind", "server", "origin"),
}
AT_NEXT_START: Final = "; the change takes effect when the workspace next starts.\n"

BYOK: Final = "byok  (workspace_override)\nThe workspace's own mode is byok.\n"
INHERITED: Final = (
    "disabled  (org_default)\nThe workspace has no mode of its own, and the organisation's default is disabled.\n"
)
LAST_CHANGE: Final = r"Last changed at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z by local\.\netag: [1-9]\d*\n"
BY_THE_DATABASE: Final = LAST_CHANGE.replace("local", "database_user:billing")

# id: stored mode, arguments before and after the id, standard output before what is matched, what is matched
ANSWERS: Final[dict[str, tuple[str | None, str, list[str], str, str]]] = {
    "resolve an override": ("byok", "resolve", [], BYOK, ""),
    "resolve what inherits": (None, "resolve", [], INHERITED, ""),
    "get": ("byok", "get", [], BYOK, BY_THE_DATABASE),
    "get what never changed": (None, "get", [], INHERITED, r"No change was ever recorded\.\netag: 0\n"),
    "set": (
        "platform_managed",
        "set",
        ["byok", "--reason", "their own key"],
        f"{BYOK}It was platform_managed (workspace_override){AT_NEXT_START}",
        LAST_CHANGE,
    ),
    "set what is set": (
        "byok",
        "set",
        ["byok"],
        f"{BYOK}It was byok (workspace_override){AT_NEXT_START}",
        BY_THE_DATABASE,
    ),
    "only validate": (
        None,
        "set",
        ["byok", "--validate-only"],
        f"{BYOK}It is disabled (org_default). Nothing was written: --validate-only.\n",
        r"No change was ever recorded\.\netag: 0\n",
    ),
    "inherit": ("byok", "inherit", [], f"{INHERITED}It was byok (workspace_override){AT_NEXT_START}", LAST_CHANGE),
}

# id: arguments, exit code, words on standard error
FAILURES: Final[dict[str, tuple[list[str], int, str]]] = {
    "get an unknown workspace": (["get", UNKNOWN], REFUSED, "WORKSPACE_NOT_FOUND: there is no workspace with this id"),
    "a stale etag of none": (["set", UNKNOWN, "byok", "--etag", "7"], REFUSED, "WORKSPACE_NOT_FOUND: "),
    "a malformed id": (["resolve", "team-a"], USAGE, "'[WORKSPACE_ID]': must be a UUID in its canonical"),
    "an empty id where none may be": (["get", ""], USAGE, "'WORKSPACE_ID': must be a UUID"),
    "a reason of two lines": (["inherit", UNKNOWN, "--reason", "a\nb"], USAGE, "'--reason': must be one line"),
    "no id": (["resolve"], USAGE, "give a WORKSPACE_ID or --file"),
    "an id and a file": (["resolve", UNKNOWN, "--file", "-"], USAGE, "give a WORKSPACE_ID or --file"),
    "a mode that is none": (["set", UNKNOWN, "BYOK"], USAGE, "'BYOK' is not one of"),
    "an unknown command": (["clear", UNKNOWN], USAGE, "No such command 'clear'"),
    "a value in place of a key": (["validate-secret", "A=secret"], USAGE, "secret_keys[0]: must be a name"),
    "two scopes": (["validate-secret", "A", "--org-wide", "--workspace", UNKNOWN], USAGE, "not both"),
    "names twice": (["plan", "A", "--env-from-current"], USAGE, "not both"),
    "no command to run": (["run", "--workspace", UNKNOWN], USAGE, "Missing argument"),
    "a timeout of nothing": (["--timeout", "0", "resolve", UNKNOWN], USAGE, "'--timeout'"),
    "a timeout that is no number": (["--timeout", "nan", "watch-health", "--once"], USAGE, "'--timeout': nan is not"),
    "a timeout of more than an hour": (["--timeout", "3601", "get", UNKNOWN], USAGE, "0<x<=3600"),
    "a budget that is no number": (
        ["run", "--workspace", "", "--retry-for", "nan", "--", "true"],
        USAGE,
        "'--retry-for': nan is not",
    ),
    "a name that is too long for a file": (["get", UNKNOWN, "--ca", "a" * 300], USAGE, "cannot be read as a file"),
    "health with a file that is not there": (
        ["watch-health", "--token-file", "/nonexistent/token"],
        USAGE,
        "'--token-file': /nonexistent/token cannot be read",
    ),
    "a token over a network": (
        ["resolve", UNKNOWN, "--address", "billing.example:1", "--token-file", "/dev/null"],
        USAGE,
        "'--token-file': /dev/null cannot be read as a file",
    ),
    "a file that is not there": (["get", UNKNOWN, "--ca", "/nonexistent/ca"], USAGE, "'--ca': /nonexistent/ca cannot"),
    "a certificate without its key": (
        ["get", UNKNOWN, "--cert", __file__],
        USAGE,
        "a client certificate needs its key",
    ),
    "a blocked key that is no name": (["get", UNKNOWN, "--extra-blocked-key", "A B"], USAGE, "not names of keys"),
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


@pytest.mark.parametrize(("mode", "command", "more", "expected", "then"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_reads_as_mode_source_and_reason(
    server: Server, module_database_url: str, mode: str | None, command: str, more: list[str], expected: str, then: str
) -> None:
    said = asked(server, command, add_workspace(module_database_url, mode), *more)
    assert said.startswith(expected)
    assert re.fullmatch(then, said.removeprefix(expected))


def parsed(server: Server, *arguments: str) -> dict[str, Any]:
    (answer,) = parsed_lines(server, *arguments)
    return answer


def parsed_lines(server: Server, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in asked(server, *arguments, "--json").splitlines()]


def test_answers_as_json_have_the_contracts_names_and_texts(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url)
    inherited = {
        "workspace_id": workspace,
        "resolved_mode": "disabled",
        "source": "org_default",
        "workspace_override": None,
        "org_default": "disabled",
        "reason": "The workspace has no mode of its own, and the organisation's default is disabled.",
        "error": None,
    }
    own = {"resolved_mode": "byok", "source": "workspace_override", "workspace_override": "byok"}
    own_mode = {**inherited, **own, "reason": "The workspace's own mode is byok."}

    assert parsed(server, "resolve", workspace.upper()) == inherited
    assert parsed(server, "get", workspace) == {
        "resolution": inherited,
        "etag": "0",
        "update_time": None,
        "updated_by": "",
    }
    tried = parsed(server, "set", workspace, "byok", "--validate-only", "--etag", "0")
    assert (tried["billing_mode"]["resolution"], tried["validate_only"]) == (own_mode, True)
    written = parsed(server, "set", workspace, "byok", "--reason", "its own", "--etag", "0")
    assert (written["billing_mode"]["resolution"], written["previous"]) == (own_mode, inherited)
    assert written["validate_only"] is False
    assert parsed(server, "get", workspace) == written["billing_mode"]
    assert parsed(server, "inherit", workspace, "--etag", written["billing_mode"]["etag"])["previous"] == own_mode

    newest, oldest = parsed_lines(server, "changes", workspace)
    assert set(newest) == set(oldest) == CHANGE_FIELDS
    assert (newest["previous_override"], newest["new_override"], newest["reason"]) == ("byok", None, "")
    assert (oldest["previous_override"], oldest["new_override"], oldest["reason"]) == (None, "byok", "its own")
    assert (oldest["workspace_id"], oldest["principal"]) == (workspace, "local")
    assert oldest["change_time"] == written["billing_mode"]["update_time"]
    assert datetime.fromisoformat(oldest["change_time"]).utcoffset() == timedelta(0)


def test_text_that_the_locale_lacks_is_written_as_an_escape(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url)
    asked(server, "set", workspace, "byok", "--reason", "\u043a\u043b\u044e\u0447")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = billing_grpc("--address", server.address, "changes", workspace, settings=ascii_only)

    assert (ended.returncode, ended.stderr) == (OK, "")
    assert ended.stdout.endswith("\t\\u043a\\u043b\\u044e\\u0447\n")


def test_the_change_log_goes_back_as_far_as_it_is_told(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url)
    modes = ["byok", "disabled"] * 4
    with psycopg.connect(module_database_url, autocommit=True) as connection:
        for mode in modes:
            connection.execute("UPDATE workspaces SET llm_billing_mode = %s WHERE id = %s", [mode, workspace])
    lines = [line.split("\t") for line in asked(server, "changes", workspace).splitlines()]

    assert [line[3] for line in lines] == modes[::-1]
    assert lines[-1][1:] == [workspace, "(inherits)", "byok", "database_user:billing", ""]
    assert [line["new_override"] for line in parsed_lines(server, "changes", workspace, "--limit", "3")] == modes[:4:-1]
    assert len(asked(server, "changes", "--limit", "5").splitlines()) == 5


def test_a_stale_etag_is_refused_and_the_present_state_named(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url, "byok")
    ended = billing_grpc("--address", server.address, "set", workspace, "disabled", "--etag", "0")

    assert (ended.returncode, ended.stdout) == (REFUSED, "")
    now = parsed(server, "get", workspace)
    assert (
        f"it is now byok (workspace_override), changed by database_user:billing at {now['update_time']}" in ended.stderr
    )
    assert ended.stderr.endswith(f"etag {now['etag']}\n")
    assert ended.stderr.count("\n") == 1


# id: arguments, exit code, verdicts
SECRETS: Final[dict[str, tuple[list[str], int, list[str]]]] = {
    "a vendor key": (["openai_api_key"], REFUSED, ["blocked_platform_managed"]),
    "one of two": (["MY_KEY", "HF_TOKEN"], REFUSED, ["allowed", "blocked_platform_managed"]),
    "reserved": (["MOLECULE_LLM_TOKEN"], REFUSED, ["blocked_reserved"]),
    "none on the list": (["MY_KEY", "OTHER"], OK, ["allowed", "allowed"]),
    "the whole organisation": (["--org-wide", "HF_TOKEN"], OK, ["allowed"]),
    "before the workspace exists": (["HF_TOKEN"], OK, ["allowed"]),
}


@pytest.mark.parametrize(("arguments", "code", "verdicts"), SECRETS.values(), ids=SECRETS.keys())
def test_a_secret_that_is_refused_is_another_exit_code(
    server: Server, module_database_url: str, arguments: list[str], code: int, verdicts: list[str], request: Any
) -> None:
    where = []
    if request.node.callspec.id not in {"the whole organisation", "before the workspace exists"}:
        where = ["--workspace", add_workspace(module_database_url, "platform_managed")]
    ended = billing_grpc("--address", server.address, "validate-secret", *where, *arguments)
    as_json = billing_grpc("--address", server.address, "validate-secret", *where, *arguments, "--json")
    answer = json.loads(as_json.stdout)

    assert (ended.returncode, as_json.returncode, ended.stderr) == (code, code, "")
    assert [line.split("\t")[1] for line in ended.stdout.splitlines()] == verdicts
    assert [each["verdict"] for each in answer["verdicts"]] == verdicts
    assert [each["secret_key"] for each in answer["verdicts"]] == [each for each in arguments if each[0] != "-"]
    assert answer["allowed"] is (code == OK)


def test_a_plan_says_what_is_there_to_strip_and_what_is_set(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url, "platform_managed")
    arguments = ("plan", "--workspace", workspace)
    answer = parsed(server, *arguments, "OPENAI_API_KEY", " hf_token", "HOME", "")
    lines = [line.split("\t") for line in asked(server, *arguments, "OPENAI_API_KEY", " hf_token").splitlines()]
    kept = parsed(server, "plan", "--workspace", add_workspace(module_database_url, "byok"), "OPENAI_API_KEY")

    # What can be no variable's name goes too, and is no key to strip.
    assert answer["present_keys"] == ["", " hf_token", "OPENAI_API_KEY"]
    assert answer["strip_keys"] == [" hf_token", "OPENAI_API_KEY"]
    catalogue = KeyList().catalogue
    assert answer["catalogue"] == {"set": "agents", "version": catalogue.version, "digest": catalogue.digest}
    assert answer["set_env"] == dict.fromkeys(MODE_VARIABLES, "platform_managed")
    assert answer["route_via_platform_proxy"] is True
    assert [line[1:] for line in lines if line[0] == "strip" and line[2] == "present"] == [
        [" hf_token", "present"],
        ["OPENAI_API_KEY", "present"],
    ]
    assert len([line for line in lines if line[0] == "strip"]) == 2
    whole = [line.split("\t") for line in asked(server, *arguments).splitlines()]
    assert [line[1:] for line in whole if line[0] == "strip"] == [[name, "absent"] for name in sorted(BLOCKED_KEYS)]
    assert [line for line in lines if line[0] != "strip"] == [
        *(["set", name, "platform_managed"] for name in MODE_VARIABLES),
        ["proxy", "", "yes"],
        ["catalogue", "agents", f"{catalogue.version} {catalogue.digest}"],
    ]
    assert (kept["present_keys"], kept["strip_keys"], kept["route_via_platform_proxy"]) == ([], [], False)


def test_a_plan_for_this_environment_takes_its_names(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url, "platform_managed")
    ended = billing_grpc(
        *("--address", server.address, "plan", "--workspace", workspace, "--env-from-current", "--json"),
        settings={"Gemini_Api_Key": "secret", "XAI_API_KEY": "secret"},
    )

    assert json.loads(ended.stdout)["present_keys"] == ["Gemini_Api_Key", "XAI_API_KEY"]
    assert "secret" not in ended.stdout + ended.stderr


def test_what_if_asks_for_another_default(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url)

    assert parsed(server, "resolve", workspace, "--org-default", "byok")["resolved_mode"] == "byok"
    assert parsed(server, "resolve", workspace, "--org-default", "")["source"] == "constant_fallback"


def test_an_empty_id_asks_for_a_workspace_that_does_not_exist_yet(server: Server) -> None:
    assert asked(server, "resolve", "").startswith("disabled  (org_default)\nThe workspace does not exist yet")


EXIT_CODES: Final[dict[BillingError, int]] = {
    InvalidArgument("TEXT_INVALID", FieldViolation("reason", "too long")): USAGE,
    Overloaded(): UNAVAILABLE,
    ServerUnreachable("nobody"): UNAVAILABLE,
    AnswerInvalid("garbled"): UNAVAILABLE,
    DatabaseTimeout(): UNAVAILABLE,
    ServerRefused("no"): REFUSED,
    Unauthenticated(): REFUSED,
    PermissionDenied(): REFUSED,
    WorkspaceNotFound("none"): REFUSED,
    EtagStale("stale"): REFUSED,
}


@pytest.mark.parametrize(("error", "code"), EXIT_CODES.items(), ids=lambda each: type(each).__name__)
def test_what_a_server_says_ends_as_the_page_says(error: BillingError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(("arguments", "code", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_says_why(server: Server, arguments: list[str], code: int, words: str) -> None:
    ended = billing_grpc("--address", server.address, *arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert words in ended.stderr


DECISIONS: Final = {
    "resolve": ["resolve", UNKNOWN],
    "validate-secret": ["validate-secret", "--workspace", UNKNOWN, "HF_TOKEN"],
    "plan": ["plan", "--workspace", UNKNOWN],
}
ADMINISTRATION: Final = {
    "get": ["get", UNKNOWN],
    "set": ["set", UNKNOWN, "byok"],
    "inherit": ["inherit", UNKNOWN],
    "changes": ["changes"],
}


@pytest.mark.parametrize("command", DECISIONS.values(), ids=DECISIONS)
def test_a_decision_of_a_server_that_is_down_is_closed_and_says_so(nobody: str, command: list[str]) -> None:
    ended = billing_grpc("--address", nobody, *command)
    as_json = billing_grpc("--address", nobody, *command, "--json")
    answer = json.loads(as_json.stdout)

    assert (ended.returncode, as_json.returncode) == (UNAVAILABLE, UNAVAILABLE)
    assert ended.stdout
    said = (
        f"billing-grpc: no answer, taken as platform_managed for safety: SERVER_UNREACHABLE: .* listening on {nobody}"
    )
    for stderr in (ended.stderr, as_json.stderr):
        assert re.match(said, stderr)
        assert stderr.count("\n") == 1
    assert answer.get("resolution", answer)["error"]["reason"] == "SERVER_UNREACHABLE"
    assert answer.get("resolution", answer)["resolved_mode"] == "platform_managed"


@pytest.mark.parametrize("command", ADMINISTRATION.values(), ids=ADMINISTRATION)
def test_administration_of_a_server_that_is_down_has_no_answer(nobody: str, command: list[str]) -> None:
    ended = billing_grpc("--address", nobody, *command, "--json")

    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (UNAVAILABLE, "", 1)
    assert ended.stderr.startswith("billing-grpc: SERVER_UNREACHABLE: ")
    assert ("the outcome is unknown: repeat the command" in ended.stderr) is (command[0] in {"set", "inherit"})


@pytest.mark.parametrize("command", [ADMINISTRATION["set"], ADMINISTRATION["inherit"]], ids=lambda each: each[0])
def test_what_writes_nothing_leaves_no_outcome_unknown(nobody: str, command: list[str]) -> None:
    ended = billing_grpc("--address", nobody, *command, "--validate-only")

    assert ended.returncode == UNAVAILABLE
    assert "outcome" not in ended.stderr


def test_an_outage_does_not_block_unrelated_secrets_nor_excuse_reserved_ones(nobody: str) -> None:
    for keys, code in ((["MY_KEY"], OK), (["MY_KEY", "HF_TOKEN"], UNAVAILABLE), (["MOLECULE_LLM_X"], REFUSED)):
        ended = billing_grpc("--address", nobody, "validate-secret", *keys)
        assert ended.returncode == code, keys
        assert "SERVER_UNREACHABLE" in ended.stderr
    ended = billing_grpc("--address", nobody, "validate-secret", "MY_KEY", "--extra-blocked-key", "my_key")
    assert ended.returncode == UNAVAILABLE


def test_without_its_database_a_decision_is_closed_and_administration_unavailable(
    serve: Serve, empty_database_url: str
) -> None:
    server = serve(settings={"DATABASE_URL": empty_database_url, "MOLECULE_LLM_BILLING_MODE": "byok"})
    for command in DECISIONS.values():
        ended = billing_grpc("--address", server.address, *command, "--json")
        answer = json.loads(ended.stdout)
        assert ended.returncode == UNAVAILABLE
        assert answer.get("resolution", answer)["resolved_mode"] == "platform_managed"
        assert "SCHEMA_NOT_READY: the database lacks the billing mode schema" in ended.stderr
    for command in ADMINISTRATION.values():
        ended = billing_grpc("--address", server.address, *command)
        assert (ended.returncode, ended.stdout) == (UNAVAILABLE, "")
        assert "SCHEMA_NOT_READY" in ended.stderr
        assert "run: billing-grpc migrate up" in ended.stderr


@pytest.mark.parametrize("command", [["resolve"], ["validate-secret"], ["plan"], ["set", UNKNOWN, "byok", "--reason"]])
def test_an_argument_that_is_no_text_is_wrong_usage(command: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-m", "billing_grpc", *command, b"\xff"], capture_output=True, check=False)
    assert ended.returncode == 2
    assert b"Traceback" not in ended.stderr


def test_a_word_that_would_take_over_a_terminal_is_named_as_an_escape() -> None:
    ended = billing_grpc("resolve", UNKNOWN, "a\x07\x9b2J")

    assert ended.returncode == USAGE
    assert ended.stderr.endswith("Error: Got unexpected extra argument (a\\x07\\x9b2J)\n")


@pytest.mark.parametrize("refused", [Unauthenticated(), PermissionDenied()], ids=lambda each: type(each).__name__)
def test_a_refusal_shows_its_notes(refused: BillingError) -> None:
    refused.add_note("as a proxy answers: denied")

    assert describe(refused, "localhost:1").endswith(" (as a proxy answers: denied)")
