"""`billing-grpc run` with real programs: what they inherit to the byte, and what happens when nobody answers."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.commands import COMMAND, Changes, billing_grpc
from tests.support.odd_server import answering
from tests.support.polling import PATIENCE, until
from tests.support.ports import free_port
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

USAGE, UNAVAILABLE, NOT_EXECUTABLE, NOT_FOUND = 2, 3, 126, 127
SHOW: Final = ("cat", "/proc/self/environ")
MODE: Final = b"MOLECULE_LLM_BILLING_MODE"
KEYS: Final = {b"OPENAI_API_KEY": b"sk-1", b"openai_api_key": b"sk-2", b" Hf_Token ": b"hf-3"}
OTHERS: Final = {
    b"PATH": os.environb[b"PATH"],
    b"EMPTY": b"",
    b"LINES": b"a\nb=c\t",
    b"LATIN": b"caf\xe9\xff",
    b"NAME\xff": b"a name that is no text",
    b"odd name-.": b"1",
    b"UNICODE": "ключ".encode(),
    b"MOLECULE_LLM_USAGE_TOKEN": b"the platform's own",
    b"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": b"/nonexistent",
}

# The last descriptor is the one by which `ls` reads the folder; in a pipeline the shell's own would come and go.
STATE: Final = "grep SigIgn /proc/self/status; exec ls /proc/self/fd"


@pytest.fixture(scope="module")
def server(module_serve: Serve, module_database_url: str) -> Server:
    return module_serve(settings={"DATABASE_URL": as_service(module_database_url)})


def run(
    address: str, workspace: str, *arguments: str | bytes, variables: dict[bytes, bytes] | None = None, **keywords: Any
) -> subprocess.CompletedProcess[bytes]:
    """`run` for a workspace, in exactly this environment."""
    return subprocess.run(
        [*COMMAND, "--address", address, "run", "--workspace", workspace, *arguments],
        env={**OTHERS, **KEYS, MODE: b"byok"} if variables is None else variables,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        **keywords,
    )


def inherited(ended: subprocess.CompletedProcess[bytes]) -> dict[bytes, bytes]:
    pairs = [pair.partition(b"=") for pair in ended.stdout.split(b"\0")[:-1]]
    return {name: value for name, _, value in pairs}


def test_a_closed_workspace_loses_the_keys_in_every_spelling_and_nothing_else(
    server: Server, module_database_url: str
) -> None:
    ended = run(server.address, add_workspace(module_database_url, "platform_managed"), "--", *SHOW)

    assert (ended.returncode, ended.stderr) == (0, b"")
    assert inherited(ended) == {**OTHERS, MODE: b"platform_managed", MODE + b"_RESOLVED": b"platform_managed"}
    assert list(inherited(ended))[: len(OTHERS)] == list(OTHERS)


@pytest.mark.parametrize("mode", ["byok", "disabled"])
def test_an_open_workspace_keeps_its_keys(server: Server, module_database_url: str, mode: str) -> None:
    ended = run(server.address, add_workspace(module_database_url, mode), "--", *SHOW)

    assert inherited(ended) == {**OTHERS, **KEYS, MODE: mode.encode(), MODE + b"_RESOLVED": mode.encode()}


@pytest.mark.parametrize("locale", [{}, {b"LC_CTYPE": b"POSIX"}, {b"LC_CTYPE": b"C.UTF-8"}, {b"LC_ALL": b"C"}], ids=str)
def test_the_locale_is_handed_on_as_it_was_given(server: Server, locale: dict[bytes, bytes]) -> None:
    given = {**OTHERS, **locale}
    set_for_it = {MODE: b"platform_managed", MODE + b"_RESOLVED": b"platform_managed"}

    assert inherited(run(server.address, "", *SHOW, variables=given)) == given | set_for_it


def test_an_environment_that_no_shell_makes_starts_the_command_all_the_same(server: Server) -> None:
    code = """
import ctypes, sys
def block(texts):
    return (ctypes.c_char_p * (len(texts) + 1))(*texts, None)
argv = [each.encode() for each in sys.argv[1:]]
env = [b"PATH=/bin:/usr/bin", b"=no name", b"A=1", b"A=2", b"no value", b"HF_TOKEN=1", b"HF_TOKEN=2"]
ctypes.CDLL(None).execve(argv[0], block(argv), block(env))
"""
    command = [*COMMAND, "--address", server.address, "run", "--workspace", "", "--", *SHOW]
    ended = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, timeout=PATIENCE, check=False)

    assert ended.stderr == b""
    assert {name: value for name, value in inherited(ended).items() if MODE not in name} == {
        b"PATH": b"/bin:/usr/bin",
        b"A": b"1",
    }


def test_more_names_than_may_be_asked_about_close_nothing_and_open_nothing(
    server: Server, module_database_url: str
) -> None:
    many = {f"VARIABLE_{number}".encode(): b"" for number in range(5000)}
    for mode, kept in (("byok", 3), ("platform_managed", 0)):
        workspace = add_workspace(module_database_url, mode)
        ended = run(server.address, workspace, *SHOW, variables={**OTHERS, **many, **KEYS})
        assert ended.stderr == b""
        assert len(inherited(ended)) == len(OTHERS) + len(many) + kept + 2


def test_the_command_takes_our_place_with_its_arguments_and_its_exit_code(server: Server) -> None:
    script = 'printf "%s|" "$@"; exit 41'
    ended = run(server.address, "", "--", "sh", "-c", script, "sh", "--json", "--", b"\xff", "-h", "")

    assert ended.stdout == b"--json|--|\xff|-h||"
    assert ended.returncode == 41


def test_the_command_has_signals_and_files_as_a_shell_would_give_them(server: Server) -> None:
    # What this run was itself started with stays ignored, whoever started it.
    plain = subprocess.run(["sh", "-c", STATE], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    ended = run(server.address, "", "sh", "-c", STATE)

    assert ended.stderr == b""
    assert ended.stdout == plain.stdout
    assert ended.stdout.splitlines()[1:] == [b"0", b"1", b"2", b"3"]


def test_a_command_is_looked_for_in_the_path_of_its_environment(server: Server, tmp_path: Path) -> None:
    program = tmp_path / "ours"
    program.write_text("#!/bin/sh\necho ours\n")
    program.chmod(0o755)
    variables = {**OTHERS, b"PATH": bytes(tmp_path)}

    assert run(server.address, "", "ours", variables=variables).stdout == b"ours\n"
    program.chmod(0o644)
    for command, code, words in (
        ("ours", NOT_EXECUTABLE, b"billing-grpc: ours: cannot be run: Permission denied\n"),
        ("", NOT_FOUND, b"billing-grpc: the command's name is empty\n"),
        ("nonesuch", NOT_FOUND, b"billing-grpc: nonesuch: not found in the PATH of its environment\n"),
        (str(tmp_path), NOT_EXECUTABLE, f"billing-grpc: {tmp_path}: cannot be run: Permission denied\n".encode()),
    ):
        ended = run(server.address, "", command, variables=variables)
        assert (ended.returncode, ended.stdout, ended.stderr) == (code, b"", words)


@pytest.fixture
def gone(serve: Serve, database_url: str) -> str:
    """The address of a server that has ended."""
    server = serve(settings={"DATABASE_URL": database_url})
    server.stop()
    return server.address


def test_without_an_answer_the_command_starts_without_keys_and_a_warning_says_so(gone: str) -> None:
    started = time.monotonic()
    ended = run(gone, "", "--retry-for", "2", "--", *SHOW)

    assert 1 < time.monotonic() - started < 30
    assert ended.returncode == 0
    assert inherited(ended) == {**OTHERS, MODE: b"platform_managed", MODE + b"_RESOLVED": b"platform_managed"}
    assert ended.stderr.startswith(b"billing-grpc: no answer, taken as platform_managed for safety: SERVER_UNREACHABLE")
    assert ended.stderr.count(b"\n") == 1


def test_where_spend_matters_nothing_starts_without_an_answer(gone: str) -> None:
    ended = run(gone, "", "--retry-for", "0", "--require-answer", "--", *SHOW)

    assert (ended.returncode, ended.stdout) == (UNAVAILABLE, b"")
    assert ended.stderr.startswith(b"billing-grpc: no answer, so cat was not started: SERVER_UNREACHABLE: ")
    assert ended.stderr.count(b"\n") == 1


def test_credentials_that_cannot_be_read_are_no_answer(server: Server) -> None:
    ended = run(server.address, "", "--token-file", "/nonexistent/token", "--retry-for", "0.5", "--", *SHOW)

    assert ended.returncode == 0
    assert not KEYS.keys() & inherited(ended).keys()
    assert b"/nonexistent/token cannot be read" in ended.stderr


def test_a_wrong_id_starts_nothing(server: Server) -> None:
    ended = run(server.address, "team-a", "--", *SHOW)

    assert (ended.returncode, ended.stdout) == (USAGE, b"")


@pytest.mark.parametrize("arguments", [(), ("--require-answer",)], ids=["", "required"])
def test_an_answer_that_comes_within_the_budget_is_waited_for(
    serve: Serve, database_url: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    settings: Changes = {"DATABASE_URL": as_service(database_url), "BILLING_GRPC_LISTEN": f"127.0.0.1:{free_port()}"}
    server = serve(settings=settings)
    workspace = add_workspace(database_url, "byok")
    server.stop()
    out, warned = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, warned.open("wb") as stderr:
        process = subprocess.Popen(
            [
                *(*COMMAND, "--address", server.address, "run", "--workspace", workspace),
                *("--retry-for", "50", *arguments, "--", *SHOW),
            ],
            env={**OTHERS, **KEYS},
            stdout=stdout,
            stderr=stderr,
        )
    time.sleep(1)
    assert process.poll() is None
    serve(settings=settings)

    assert process.wait(PATIENCE) == 0
    assert KEYS.keys() <= dict(pair.split(b"=", 1) for pair in out.read_bytes().split(b"\0")[:-1]).keys()
    assert warned.read_bytes() == b""


def test_a_server_that_hangs_takes_no_longer_than_the_budget(serve: Serve, database_url: str) -> None:
    server = serve(settings={"DATABASE_URL": database_url})
    server.process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        ended = run(server.address, "", "--retry-for", "3", "--", "echo", "started")
        took = time.monotonic() - started
    finally:
        server.process.send_signal(signal.SIGCONT)

    assert ended.stdout == b"started\n"
    assert 3 <= took < 20


def test_an_interrupt_while_asking_starts_nothing(serve: Serve, database_url: str) -> None:
    server = serve(settings={"DATABASE_URL": database_url})
    server.process.send_signal(signal.SIGSTOP)
    try:
        process = subprocess.Popen(
            [*COMMAND, "--address", server.address, "run", "--workspace", "", "--retry-for", "50", "--", "echo", "no"],
            env=OTHERS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        until(lambda: b"grpc" in Path(f"/proc/{process.pid}/maps").read_bytes())
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        server.process.send_signal(signal.SIGCONT)

    assert (process.returncode, out, err.strip()) == (130, b"", b"")


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_a_warning_that_cannot_be_written_does_not_keep_the_command_from_starting(gone: str, stderr: str) -> None:
    command = [*COMMAND, "--address", gone, "run", "--workspace", "", "--retry-for", "0", "--", *SHOW]
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {stderr}', "sh", *command],
        env={**OTHERS, **KEYS},
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )

    assert ended.returncode == 0
    assert inherited(ended)[MODE] == b"platform_managed"
    assert not KEYS.keys() & inherited(ended).keys()


def test_a_space_that_is_no_ascii_hides_no_key_in_any_locale(server: Server) -> None:
    ascii_only = {b"LC_ALL": b"C", b"PYTHONUTF8": b"0", b"PYTHONCOERCECLOCALE": b"0"}
    hidden = {"\u00a0HF_TOKEN".encode(): b"1", "XAI_API_KEY\u2003".encode(): b"2"}
    ended = run(server.address, "", *SHOW, variables={**OTHERS, **ascii_only, **hidden})

    assert inherited(ended) == {
        **OTHERS,
        **ascii_only,
        MODE: b"platform_managed",
        MODE + b"_RESOLVED": b"platform_managed",
    }


HIDDEN: Final = {
    "\ufeffANTHROPIC_API_KEY".encode(): b"a byte order mark",
    "HF_TOKEN\u200b".encode(): b"a zero-width space",
    b"\xffGLM_API_KEY": b"a byte that is no text",
    b'"NOUS_API_KEY"': b"quotes",
    b"export OPENAI_API_KEY": b"a shell's word",
    b"A\nKIMI_API_KEY": b"a second line",
    b"A\nB": b"two lines",
}
FORGED: Final = {b"molecule_llm_billing_mode": b"byok", b" MOLECULE_LLM_BILLING_MODE_RESOLVED": b"byok"}


@pytest.mark.parametrize(("mode", "kept"), [("platform_managed", {}), ("byok", HIDDEN)], ids=["closed", "open"])
def test_names_that_hide_a_key_go_and_no_forged_mode_stays(
    server: Server, module_database_url: str, mode: str, kept: dict[bytes, bytes]
) -> None:
    workspace = add_workspace(module_database_url, mode)
    ended = run(server.address, workspace, *SHOW, variables={**OTHERS, **HIDDEN, **FORGED})

    assert inherited(ended) == {**OTHERS, **kept, MODE: mode.encode(), MODE + b"_RESOLVED": mode.encode()}


def test_an_asking_ends_at_its_timeout_and_is_repeated_within_the_budget() -> None:
    askings: list[bytes] = []
    over = threading.Event()

    def hang(request: bytes) -> bytes:
        askings.append(request)
        over.wait(PATIENCE)
        return b""

    with answering(hang) as address:
        ended = run(address, "", "--timeout", "0.5", "--retry-for", "3", "--", *SHOW)
        over.set()

    assert ended.returncode == 0
    assert b"DEADLINE_EXCEEDED" in ended.stderr
    assert len(askings) > 1


def test_a_single_asking_has_the_time_that_a_call_has() -> None:
    def late(_: bytes) -> bytes:
        time.sleep(0.5)
        return b""

    with answering(late) as address:
        ended = run(address, "", "--retry-for", "0", "--", *SHOW)

    assert b"ANSWER_INVALID" in ended.stderr


@pytest.mark.parametrize("command", [["resolve", ""], ["plan"], ["watch-health", "--once"]], ids=lambda each: each[0])
def test_a_call_takes_no_longer_than_its_timeout(command: list[str]) -> None:
    over = threading.Event()

    def hang(_: bytes) -> bytes:
        over.wait(2)
        return b""

    with answering(hang) as address:
        ended = billing_grpc("--address", address, "--timeout", "0.5", *command)
        over.set()

    assert ended.returncode == UNAVAILABLE
    assert "DEADLINE_EXCEEDED" in ended.stderr
