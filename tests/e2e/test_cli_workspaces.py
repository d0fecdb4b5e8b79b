"""The commands about all workspaces: what a person at a terminal and a script see, and how they exit."""

import json
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from tests.support.commands import billing_grpc
from tests.support.pseudo_terminal import at_terminal
from tests.support.servers import Serve, Server
from tests.support.workspaces import as_service

USAGE, UNAVAILABLE = 2, 3
W: Final = "00000000-0000-4000-8000-00000000000{}"
STORED: Final = [
    (1, "checkout", None),
    (2, "search", "byok"),
    (3, "a\ttab", None),
    (4, "ads", "disabled"),
    (5, "odd", "BYOK"),
]


@pytest.fixture(scope="module")
def server(module_serve: Serve, module_database_url: str) -> Server:
    with psycopg.connect(module_database_url, autocommit=True) as owner:
        owner.execute("ALTER TABLE workspaces DROP CONSTRAINT workspaces_llm_billing_mode_check")
        for number, name, mode in STORED:
            owner.execute(
                "INSERT INTO workspaces (id, name, llm_billing_mode) VALUES (%s, %s, %s)",
                [W.format(number), name, mode],
            )
    return module_serve(settings={"DATABASE_URL": as_service(module_database_url)})


def lines(server: Server, *arguments: str) -> list[str]:
    ended = billing_grpc("--address", server.address, *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def objects(server: Server, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(server, *arguments, "--json")]


def test_a_list_has_a_line_for_each_workspace(server: Server) -> None:
    assert lines(server, "list") == [
        f"{W.format(1)}\tplatform_managed\tconstant_fallback\t\tcheckout\t",
        f"{W.format(2)}\tbyok\tworkspace_override\tbyok\tsearch\tdatabase_user:billing",
        f"{W.format(3)}\tplatform_managed\tconstant_fallback\t\ta\\ttab\t",
        f"{W.format(4)}\tdisabled\tworkspace_override\tdisabled\tads\tdatabase_user:billing",
        f"{W.format(5)}\tplatform_managed\tconstant_fallback\tBYOK\todd\tdatabase_user:billing",
    ]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["--mode", "byok"], [2]),
        (["--source", "constant_fallback"], [1, 3, 5]),
        (["--overrides"], [2, 4, 5]),
        (["--unrecognised"], [5]),
        (["--org-default", "byok", "--would-change"], [1, 3]),
        (["--org-default", "byok", "--mode", "byok"], [1, 2, 3]),
        (["--limit", "2"], [1, 2]),
    ],
)
def test_an_option_narrows_the_list(server: Server, arguments: list[str], numbers: list[int]) -> None:
    found = objects(server, "list", *arguments)
    assert [each["resolution"]["workspace_id"] for each in found] == [W.format(number) for number in numbers]


def test_a_listed_workspace_as_json_is_what_get_says_and_its_name(server: Server) -> None:
    (found,) = objects(server, "list", "--mode", "byok")
    (got,) = objects(server, "get", W.format(2))
    assert found == {**got, "name": "search"}


def test_a_list_at_a_terminal_is_in_colour_and_in_columns(server: Server) -> None:
    seen = at_terminal("--address", server.address, "list", "--mode", "byok", columns=200)
    assert seen.lines[0].split() == [
        W.format(2),
        "byok",
        "workspace_override",
        "byok",
        "search",
        "database_user:billing",
    ]
    assert "\x1b[32m" in seen.screen


def test_what_would_change_needs_a_default_to_suppose(server: Server) -> None:
    ended = billing_grpc("--address", server.address, "list", "--would-change")
    assert ended.returncode == USAGE
    assert "--would-change needs --org-default" in ended.stderr


def test_a_list_without_a_server_is_no_empty_list() -> None:
    ended = billing_grpc("--address", "127.0.0.1:1", "list")
    assert (ended.returncode, ended.stdout) == (UNAVAILABLE, "")


def test_a_summary_counts_and_supposes(server: Server) -> None:
    assert lines(server, "summary", "--org-default", "byok") == [
        "count\tplatform_managed\tconstant_fallback\t3",
        "count\tbyok\tworkspace_override\t1",
        "count\tdisabled\tworkspace_override\t1",
        "move\tplatform_managed\tbyok\t2",
        "unrecognised\t\t\t1",
    ]
    (found,) = objects(server, "summary", "--org-default", "byok")
    assert (found["workspaces"], found["unrecognised_overrides"], found["org_default"]) == (5, 1, "platform_managed")
    assert found["moves"] == [{"from_mode": "platform_managed", "to_mode": "byok", "workspaces": 2}]


def test_a_summary_at_a_terminal_is_a_table_and_sentences(server: Server) -> None:
    seen = at_terminal("--address", server.address, "summary", "--org-default", "byok", columns=100)
    assert seen.lines[0].split() == ["mode", "source", "workspaces"]
    assert seen.lines[-1].strip() == 'With "byok" as the default, 2 would go from platform_managed to byok.'


def test_a_file_of_ids_is_resolved_with_a_supposed_default(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text("\n".join(W.format(number) for number in (1, 2, 5)))
    assert lines(server, "resolve", "--file", str(file), "--org-default", "byok") == [
        f"{W.format(1)}\tbyok\torg_default\t\t",
        f"{W.format(2)}\tbyok\tworkspace_override\t\tbyok",
        f"{W.format(5)}\tplatform_managed\tconstant_fallback\t\tBYOK",
    ]
