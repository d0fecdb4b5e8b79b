"""What a command loads before it does anything, its help, and its completion in a real shell."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import click
import pytest

from billing_grpc.cli import main as command_line
from tests.support.commands import billing_grpc, environment
from tests.support.polling import PATIENCE

GROUP: Final = command_line.cli
CALLS: Final = [
    "resolve",
    "list",
    "summary",
    "get",
    "set",
    "inherit",
    "changes",
    "validate-secret",
    "plan",
    "run",
    "watch-health",
]
NAMES: Final = [
    *CALLS,
    "catalogue",
    "serve",
    "gateway",
    "migrate",
    "grants",
    "token",
    "conformance-server",
    "completion",
]
SERVER_PARTS: Final = {
    *(
        "psycopg",
        "psycopg_pool",
        "yoyo",
        "pydantic",
        "pydantic_settings",
        "structlog",
        "grpc_reflection.v1alpha",
        "rich",
    ),
    *(
        "billing_grpc.server.run",
        "billing_grpc.server.servicer",
        "billing_grpc.server.settings.config",
        "billing_grpc.storage.migrations",
    ),
}
PROGRAM: Final = Path(sys.executable).with_name("billing-grpc")


def loaded(*arguments: str) -> set[str]:
    """The modules that this command has loaded when it ends."""
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}; from billing_grpc.cli.main import main; main()", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return set(ended.stderr.splitlines()[-1].split())


def command(name: str) -> click.Command:
    found = GROUP.get_command(click.Context(GROUP), name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["completion", "bash"], ["catalogue", "list"]], ids=lambda each: each[0]
)
def test_what_asks_nobody_loads_neither_grpc_nor_a_server(arguments: list[str]) -> None:
    assert not loaded(*arguments) & {"grpc", "google.protobuf", "prometheus_client", *SERVER_PARTS}


@pytest.mark.parametrize("name", [*CALLS, "gateway"])
def test_a_call_loads_no_part_of_a_server(name: str) -> None:
    modules = loaded("--address", "127.0.0.1:1", name, "--help")

    assert "grpc" in modules
    assert not modules & SERVER_PARTS


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    shown = billing_grpc("--help", settings={"COLUMNS": "200"}).stdout

    assert GROUP.list_commands(click.Context(GROUP)) == NAMES
    for name in NAMES:
        line = re.search(rf"^  {name} +(.*)$", shown, re.MULTILINE)
        assert line is not None
        assert line[1] == (command(name).help or "").splitlines()[0], name


@pytest.mark.parametrize("name", [*CALLS, "completion"])
def test_the_help_of_a_command_has_an_example_and_every_option_a_text(name: str) -> None:
    shown = billing_grpc(name, "--help").stdout

    assert re.search(rf"Examples?:\n(.*\n)*.*billing-grpc {name}\b", shown)
    assert all(option.help for option in command(name).params if isinstance(option, click.Option))
    assert "--token-file" not in shown


def test_the_help_states_the_exit_codes_and_the_settings() -> None:
    shown = billing_grpc("--help").stdout

    assert "3  unavailable" in shown
    assert "BILLING_GRPC_ADDRESS" in shown


def test_the_entry_point_is_where_it_was() -> None:
    (script,) = entry_points(group="console_scripts", name="billing-grpc")

    assert script.value == "billing_grpc.__main__:main"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    ended = billing_grpc("completion", shell)

    assert ended.returncode == 0
    assert f"_BILLING_GRPC_COMPLETE={shell}_complete" in ended.stdout


# id: the words of the line, what the last is completed to
COMPLETIONS: Final = {
    "a command": (["billing-grpc", "res"], ["resolve"]),
    "commands": (["billing-grpc", "wa"], ["watch-health"]),
    "a mode": (["billing-grpc", "set", "ID", "b"], ["byok"]),
    "an option": (["billing-grpc", "get", "ID", "--js"], ["--json"]),
    "an option of all": (["billing-grpc", "--tok"], ["--token-file"]),
}


@pytest.mark.parametrize(("words", "expected"), COMPLETIONS.values(), ids=COMPLETIONS)
def test_a_real_bash_completes(words: list[str], expected: list[str]) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    script = (
        f'PATH="{PROGRAM.parent}:$PATH"; eval "$(billing-grpc completion bash)"; '
        "complete -p billing-grpc >/dev/null || exit 9; "
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); "
        '_billing_grpc_completion billing-grpc; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ended = subprocess.run(
        [bash, "--norc", "--noprofile", "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (ended.returncode, ended.stdout.split()) == (0, expected), ended.stderr
