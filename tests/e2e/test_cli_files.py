"""Ids from a file or a pipe: in order, streamed, bad lines named; and an output that is closed early."""

import json
import os
import signal
import subprocess
import threading
import uuid
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.support.commands import COMMAND, billing_grpc, environment
from tests.support.polling import PATIENCE
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

USAGE, UNAVAILABLE, INTERRUPTED = 2, 3, 130
MANY: Final = 10_000


@pytest.fixture(scope="module")
def server(module_serve: Serve, module_database_url: str) -> Server:
    return module_serve(
        settings={"DATABASE_URL": as_service(module_database_url), "MOLECULE_LLM_BILLING_MODE": "disabled"}
    )


def resolving(server: Server, file: object, *more: str) -> list[str]:
    return [*COMMAND, "--address", server.address, "resolve", "--file", str(file), *more]


def read_lines(process: subprocess.Popen[bytes], count: int) -> list[bytes]:
    """As many lines of its output, or as many as there are until it has had time enough and is killed."""
    assert process.stdout is not None
    watchdog = threading.Timer(PATIENCE / 2, process.kill)
    watchdog.start()
    lines = [line for line in (process.stdout.readline() for _ in range(count)) if line.endswith(b"\n")]
    watchdog.cancel()
    return lines


def test_ids_of_several_batches_are_answered_in_their_order(
    server: Server, module_database_url: str, tmp_path: Path
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(2500)]
    own = set(ids[::7])
    with psycopg.connect(module_database_url) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, %s)",
            [(each, "byok" if each in own else None) for each in ids],
        )
    file = tmp_path / "ids.txt"
    file.write_text("\n".join(ids))
    ended = billing_grpc(*resolving(server, file)[len(COMMAND) :])
    as_json = billing_grpc(*resolving(server, file, "--json")[len(COMMAND) :])
    objects = [json.loads(line) for line in as_json.stdout.splitlines()]

    assert (ended.returncode, ended.stderr, as_json.returncode, as_json.stderr) == (0, "", 0, "")
    assert ended.stdout.splitlines() == [
        f"{each}\tbyok\tworkspace_override\t\tbyok" if each in own else f"{each}\tdisabled\torg_default\t\t"
        for each in ids
    ]
    assert [each["workspace_id"] for each in objects] == ids
    assert {each["workspace_id"] for each in objects if each["resolved_mode"] == "byok"} == own


def test_lines_that_are_no_ids_are_named_and_the_others_answered(server: Server, tmp_path: Path) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    file = tmp_path / "ids.txt"
    file.write_bytes(
        b"\xef\xbb\xbf# workspaces of the trial\r\n\r\n"
        + f"  {first.upper()}\r\n".encode()
        + b"team-a\n\xff\xfe\n\x1b[2J\n# end\n"
        + second.encode()
    )
    ended = billing_grpc(*resolving(server, file)[len(COMMAND) :])

    assert ended.returncode == USAGE
    assert [line.split("\t")[0] for line in ended.stdout.splitlines()] == [first, second]
    assert [line.partition(": must")[0] for line in ended.stderr.splitlines()] == [
        "billing-grpc: line 4",
        "billing-grpc: line 5",
        "billing-grpc: line 6",
    ]
    assert 'got "team-a"' in ended.stderr
    assert "\x1b" not in ended.stderr


def test_many_bad_lines_are_counted(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("nonsense\n" * 1000)
    ended = billing_grpc(*resolving(server, file)[len(COMMAND) :])

    assert (ended.returncode, ended.stdout) == (USAGE, "")
    assert len(ended.stderr.splitlines()) == 21
    assert ended.stderr.endswith("and 980 more lines with malformed ids\n")


def test_a_pipe_is_answered_while_it_is_written(server: Server) -> None:
    with subprocess.Popen(
        resolving(server, "-"), env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ids = [str(uuid.uuid4()) for _ in range(1500)]
        process.stdin.write("".join(f"{each}\n" for each in ids[:1000]).encode())
        process.stdin.flush()
        # The writer has not finished, and its first thousand are answered.
        answered = read_lines(process, 1000)
        assert len(answered) == 1000, "not all were answered before the end of its input"
        process.stdin.write("".join(f"{each}\n" for each in ids[1000:]).encode())
        process.stdin.close()
        answered += process.stdout.readlines()

        assert [line.decode().split("\t")[0] for line in answered] == ids
        assert process.wait(PATIENCE) == 0


def test_an_interrupt_ends_it_without_a_word(server: Server) -> None:
    with subprocess.Popen(
        resolving(server, "-"), env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write("".join(f"{uuid.uuid4()}\n" for _ in range(1001)).encode())
        process.stdin.flush()
        assert len(read_lines(process, 1000)) == 1000
        # It waits for more lines of a batch that is not full.
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == INTERRUPTED
        assert process.stderr is not None
        assert process.stderr.read().strip() == b""


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["text", "json"])
def test_a_reader_that_leaves_early_ends_it_quietly(server: Server, tmp_path: Path, more: tuple[str, ...]) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("\n".join(str(uuid.uuid4()) for _ in range(MANY)))
    with subprocess.Popen(
        resolving(server, file, *more), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 141


def test_an_output_that_cannot_be_written_is_an_error(server: Server, module_database_url: str) -> None:
    workspace = add_workspace(module_database_url)
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [*COMMAND, "--address", server.address, "get", workspace],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )

    assert ended.returncode == 1
    assert ended.stderr == b"billing-grpc: standard output cannot be written: " + os.strerror(28).encode() + b"\n"


def test_without_a_server_every_line_is_closed_and_the_reason_said_once(serve: Serve, database_url: str) -> None:
    gone = serve(settings={"DATABASE_URL": database_url})
    gone.stop()
    ids = [str(uuid.uuid4()) for _ in range(1200)]
    # What has no answer comes before what is wrong: it may be another the next time.
    ended = subprocess.run(
        resolving(gone, "-", "--json"),
        env=environment(),
        input="\n".join([*ids, "team-a"]),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    answers = [json.loads(line) for line in ended.stdout.splitlines()]

    assert ended.returncode == UNAVAILABLE
    assert [each["workspace_id"] for each in answers] == ids
    assert {(each["resolved_mode"], each["error"]["reason"]) for each in answers} == {
        ("platform_managed", "SERVER_UNREACHABLE")
    }
    assert ended.stderr.startswith("billing-grpc: ")
    assert "without an answer, taken as platform_managed for safety: SERVER_UNREACHABLE: " in ended.stderr
    assert "line 1201: must be a UUID" in ended.stderr
    assert len(ended.stderr.splitlines()) <= 3


# id: what the shell closes or spoils, arguments, exit code, standard error
STREAMS: Final = {
    "no output": (">&-", ["resolve", ""], 1, "billing-grpc: standard output cannot be written: Bad file descriptor\n"),
    "no output, help": (">&-", ["--help"], 0, ""),
    "no input": (
        "<&-",
        ["resolve", "--file", "-"],
        USAGE,
        "billing-grpc: the ids cannot be read: Bad file descriptor\n",
    ),
    "an input that fails": (
        "",
        ["resolve", "--file", "/proc/self/mem"],
        USAGE,
        "billing-grpc: the ids cannot be read: Input/output error\n",
    ),
    "no place for errors": ("2>&-", ["resolve", "team-a"], USAGE, ""),
    "no place for errors, nothing loaded": ("2>&-", ["nonesuch"], USAGE, ""),
    "errors go nowhere": ("2>/dev/full", ["--address", "127.0.0.1:1", "resolve", ""], UNAVAILABLE, ""),
    "nothing at all": ("<&- >&- 2>&-", ["--address", "127.0.0.1:1", "get", str(uuid.UUID(int=1))], UNAVAILABLE, ""),
}


@pytest.mark.parametrize(("streams", "arguments", "code", "said"), STREAMS.values(), ids=STREAMS)
def test_a_stream_that_is_closed_or_fails_changes_no_exit_code_but_its_own(
    server: Server, streams: str, arguments: list[str], code: int, said: str
) -> None:
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", *COMMAND, *arguments],
        env=environment({"BILLING_GRPC_ADDRESS": server.address}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (code, said)
