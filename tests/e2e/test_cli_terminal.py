"""What a person sees at a terminal: colour, tables that fit, progress; and nothing that a stored text could do to it."""

import uuid
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.support.commands import billing_grpc
from tests.support.pseudo_terminal import at_terminal
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

REASON: Final = "a reason that is longer than what is left of a line, so that it has to be folded somewhere"
COLOUR: Final = "\x1b["
TOOK_OVER: Final = "\x1b]0;mine\x07\x1b[2Jbyok\u202e"
ESCAPED: Final = r"\x1b]0;mine\x07\x1b[2Jbyok\u202e"


@pytest.fixture(scope="module")
def server(module_serve: Serve, module_database_url: str) -> Server:
    return module_serve(settings={"DATABASE_URL": as_service(module_database_url)})


def test_a_mode_is_coloured_at_a_terminal_and_nowhere_else(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url, "byok")
    arguments = ("--address", server.address, "resolve", workspace)
    seen = at_terminal(*arguments)
    plain = billing_grpc(*arguments)
    without_colour = at_terminal(*arguments, settings={"NO_COLOR": "1"})

    assert seen.screen.startswith("\x1b[32mbyok\x1b[0m  (workspace_override)")
    assert seen.text == plain.stdout
    assert COLOUR not in plain.stdout
    assert billing_grpc(*arguments, settings={"FORCE_COLOR": "1"}).stdout == plain.stdout
    assert COLOUR not in without_colour.screen
    assert COLOUR not in at_terminal("--address", server.address, "changes", settings={"NO_COLOR": "1"}).screen
    assert without_colour.screen == plain.stdout


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_table_breaks_no_id_and_no_mode_however_narrow_the_terminal(
    server: Server, module_database_url: str, columns: int
) -> None:
    workspace = add_workspace(module_database_url, "platform_managed")
    billing_grpc("--address", server.address, "set", workspace, "disabled", "--reason", REASON)
    seen = at_terminal("--address", server.address, "changes", "--limit", "1", columns=columns)

    first = seen.lines[1]
    assert seen.lines[0].split() == ["when", "workspace", "from", "to", "who", "why"]
    assert f" {workspace}  platform_managed  disabled  local" in first
    folded = " ".join([first[first.index("local") + len("local") :].strip(), *map(str.strip, seen.lines[2:])])
    assert folded == REASON


def test_the_changes_of_one_workspace_fit_eighty_columns(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url)
    billing_grpc("--address", server.address, "set", workspace, "platform_managed", "--reason", "a trial")
    seen = at_terminal("--address", server.address, "changes", workspace)

    assert workspace not in seen.text
    assert "(inherits)  platform_managed  local  a trial" in seen.text
    assert max(map(len, seen.lines)) <= 80


def test_a_table_of_verdicts_names_each_key_and_what_to_do(server: Server) -> None:
    seen = at_terminal("--address", server.address, "validate-secret", "OPENAI_API_KEY", "MY_KEY", columns=120)

    assert seen.code == 1
    assert seen.lines[0].split() == ["key", "verdict", "message"]
    assert seen.lines[1].startswith('OPENAI_API_KEY  blocked_platform_managed  "OPENAI_API_KEY" is blocked: ')
    assert seen.lines[-1].split()[:2] == ["MY_KEY", "allowed"]


def test_a_plan_at_a_terminal_says_first_who_pays(server: Server) -> None:
    seen = at_terminal("--address", server.address, "plan", "openai_api_key")

    assert seen.lines[0] == "platform_managed  (constant_fallback)"
    assert ["strip", "openai_api_key", "present"] in [line.split() for line in seen.lines]
    assert seen.lines[-2].split() == ["proxy", "yes"]
    assert seen.lines[-1].split()[:2] == ["catalogue", "agents"]


def test_a_long_list_shows_its_progress_beside_a_pipe(server: Server, tmp_path: Path) -> None:
    ids = [str(uuid.uuid4()) for _ in range(2500)]
    file = tmp_path / "ids.txt"
    file.write_text("\n".join(ids))
    seen = at_terminal("--address", server.address, "resolve", "--file", str(file), piped_output=True)

    assert [line.split("\t")[0] for line in seen.piped.splitlines()] == ids
    for step in ("1000/2500", "2000/2500", "2500/2500"):
        assert step in seen.text


def test_a_long_list_at_a_terminal_is_aligned_and_has_no_bar(server: Server, tmp_path: Path) -> None:
    ids = [str(uuid.uuid4()) for _ in range(3)]
    file = tmp_path / "ids.txt"
    file.write_text("\n".join(ids))
    seen = at_terminal("--address", server.address, "resolve", "--file", str(file))

    assert seen.lines == [f"{each}  platform_managed  constant_fallback" for each in ids]


def test_what_is_stored_cannot_take_over_a_terminal(serve: Serve, database_url: str) -> None:
    server = serve(settings={"DATABASE_URL": as_service(database_url)})
    workspace = add_workspace(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE workspaces DROP CONSTRAINT workspaces_llm_billing_mode_check")
        connection.execute("UPDATE workspaces SET llm_billing_mode = %s", [TOOK_OVER])

    for arguments in (["changes"], ["resolve", workspace], ["get", workspace], ["get", workspace, "--json"]):
        seen = at_terminal("--address", server.address, *arguments, columns=300)
        piped = billing_grpc("--address", server.address, *arguments)
        assert (seen.code, piped.returncode) == (0, 0)
        for text in (seen.text, piped.stdout):
            assert all(c.isprintable() or c in "\n\t" for c in text), arguments
    assert ESCAPED in at_terminal("--address", server.address, "changes", columns=300).text
    for command in ("resolve", "get"):
        assert (
            f'\nIt is stored as "{ESCAPED}".\n' in billing_grpc("--address", server.address, command, workspace).stdout
        )
