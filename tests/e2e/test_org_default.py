"""The published org default: read as it is now, in whatever way it changes, and closed while it cannot be read."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.polling import until
from tests.support.servers import Serve, Server, decision
from tests.support.workspaces import as_service

if TYPE_CHECKING:
    from tests.support.commands import Changes

CLOSED: Final = ("platform_managed", "constant_fallback")
PLATFORM: Final = ("platform_managed", "org_default")
BYOK: Final = ("byok", "org_default")
DISABLED: Final = ("disabled", "org_default")

# id: the text, and what a workspace that does not exist yet resolves to
TEXTS: Final = {
    "byok": ("byok", BYOK),
    "disabled": ("disabled", DISABLED),
    "platform_managed": ("platform_managed", PLATFORM),
    "upper case": ("BYOK", BYOK),
    "mixed case": ("Platform_Managed", PLATFORM),
    "spaces around it": ("  byok\t", BYOK),
    "a newline": ("disabled\n", DISABLED),
    "a Windows newline": ("disabled\r\n", DISABLED),
    "only space": (" \n", CLOSED),
    "another word": ("free", CLOSED),
    "two words": ("byok disabled", CLOSED),
    "a hyphen": ("platform-managed", CLOSED),
    "in quotes": ('"byok"', CLOSED),
    "a letter that lower-cases to k": ("byo\u212a", CLOSED),
    "a space of another alphabet": ("\u00a0byok", CLOSED),
}
# id: what stands in the file
UNREADABLE: Final = {
    "not UTF-8": b"byok\xff",
    "UTF-16": "byok".encode("utf-16"),
    "empty": b"",
    "a byte-order mark": b"\xef\xbb\xbfbyok",
    "a mode, and more behind much space": b"byok" + b" " * 4092 + b"x",
    "behind more space than anybody reads": b" " * 5000 + b"byok",
}


@pytest.fixture(scope="module")
def shared(
    module_serve: Serve, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Server, Path]:
    """One server for every test that writes a file, and the path of that file."""
    path = tmp_path_factory.mktemp("published") / "mode"
    settings: Changes = {"DATABASE_URL": as_service(module_database_url), "MOLECULE_LLM_BILLING_MODE_FILE": path}
    return module_serve(settings=settings), path


@pytest.fixture
def server(shared: tuple[Server, Path], path: Path) -> Server:
    del path
    return shared[0]


@pytest.fixture
def path(shared: tuple[Server, Path]) -> Iterator[Path]:
    """The file, which says `byok` when a test starts, and is gone when it ends."""
    found = shared[1]
    found.write_text("byok")
    yield found
    if found.is_dir() and not found.is_symlink():
        found.rmdir()
    else:
        found.unlink(missing_ok=True)


def replace(path: Path, content: bytes) -> None:
    """Writes beside the file and renames, so that no reader sees half of it."""
    beside = path.with_name("mode.new")
    beside.write_bytes(content)
    beside.replace(path)


def now(server: Server) -> tuple[str, str]:
    return decision(server.resolve())


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS.keys())
def test_a_file_is_trimmed_and_its_case_folded(
    server: Server, path: Path, text: str, expected: tuple[str, str]
) -> None:
    path.write_text(text, encoding="utf-8", newline="")
    assert now(server) == expected


@pytest.mark.parametrize("name", ["upper case", "spaces around it", "another word"])
def test_a_setting_is_judged_as_a_file_is(serve: Serve, module_database_url: str, name: str) -> None:
    text, expected = TEXTS[name]
    assert (
        now(serve(settings={"DATABASE_URL": as_service(module_database_url), "MOLECULE_LLM_BILLING_MODE": text}))
        == expected
    )


@pytest.mark.parametrize("text", [None, ""], ids=["unset", "empty"])
def test_without_a_published_default_everything_is_closed(
    serve: Serve, module_database_url: str, text: str | None
) -> None:
    assert (
        now(serve(settings={"DATABASE_URL": as_service(module_database_url), "MOLECULE_LLM_BILLING_MODE": text}))
        == CLOSED
    )


def test_a_file_that_is_rewritten_in_place_is_read_again(server: Server, path: Path) -> None:
    assert now(server) == BYOK
    path.write_text("disabled")
    assert now(server) == DISABLED


def test_a_file_that_is_replaced_is_read_again(server: Server, path: Path) -> None:
    assert now(server) == BYOK
    replace(path, b"disabled")
    assert now(server) == DISABLED


def test_a_directory_that_is_swapped_as_orchestrators_do_is_read_again(server: Server, path: Path) -> None:
    published = path.parent
    for name, text in (("v1", "disabled"), ("v2", "platform_managed")):
        (published / name).mkdir()
        (published / name / "mode").write_text(text)
    current, coming = published / "..data", published / "..data.new"
    current.symlink_to("v1")
    path.unlink()
    path.symlink_to("..data/mode")
    assert now(server) == DISABLED
    coming.symlink_to("v2")
    coming.replace(current)
    assert now(server) == PLATFORM


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_does_not_say_a_mode_is_closed_until_it_is_repaired(server: Server, path: Path, content: bytes) -> None:
    assert now(server) == BYOK
    replace(path, content)
    assert now(server) == CLOSED
    replace(path, b"disabled")
    assert now(server) == DISABLED


def test_a_file_that_is_gone_is_closed_until_it_is_back(server: Server, path: Path) -> None:
    assert now(server) == BYOK
    path.unlink()
    assert now(server) == CLOSED
    assert server.logged("org default unreadable", error="FileNotFoundError")["file"] == str(path)
    path.write_text("byok")
    assert now(server) == BYOK


def test_a_directory_in_the_files_place_is_closed_until_it_is_a_file(server: Server, path: Path) -> None:
    path.unlink()
    path.mkdir()
    assert now(server) == CLOSED
    assert server.logged("org default unreadable", error="IsADirectoryError")["level"] == "warning"
    path.rmdir()
    path.write_text("byok")
    assert now(server) == BYOK


def test_a_pipe_in_the_files_place_is_closed_and_holds_no_call_up(server: Server, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    assert now(server) == CLOSED
    server.logged("org default unreadable", problem="not a regular file")
    path.unlink()
    path.write_text("byok")
    assert now(server) == BYOK


def test_a_secret_put_in_the_files_place_is_not_logged(server: Server, path: Path) -> None:
    replace(path, b"sk-put-there-by-mistake")
    assert now(server) == CLOSED
    server.logged("org default read", org_default="unrecognised")
    assert "by-mistake" not in server.stderr


def test_a_server_starts_without_its_file_and_sees_it_come(
    serve: Serve, module_database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "later" / "mode"
    server = serve(settings={"DATABASE_URL": as_service(module_database_url), "MOLECULE_LLM_BILLING_MODE_FILE": path})
    assert now(server) == CLOSED
    path.parent.mkdir()
    path.write_text("byok")
    assert now(server) == BYOK


def test_sighup_reads_the_file_again_without_a_call(server: Server, path: Path) -> None:
    assert now(server) == BYOK
    seen = len(server.records("org default read"))
    path.write_text("disabled")
    server.process.send_signal(signal.SIGHUP)
    latest = until(lambda: server.records("org default read")[seen:])[-1]
    assert latest["org_default"] == "disabled"
    assert now(server) == DISABLED


def test_sighup_does_not_end_a_server_with_a_fixed_default(serve: Serve, module_database_url: str) -> None:
    server = serve(settings={"DATABASE_URL": as_service(module_database_url), "MOLECULE_LLM_BILLING_MODE": "byok"})
    server.process.send_signal(signal.SIGHUP)
    assert now(server) == BYOK
    assert server.stop() == 0


def test_running_calls_see_the_old_default_or_the_new_one_and_nothing_between(server: Server, path: Path) -> None:
    done = threading.Event()
    assert now(server) == BYOK

    def calls() -> set[tuple[str, str]]:
        seen = {now(server)}
        while not done.is_set():
            seen.add(now(server))
        return seen

    with ThreadPoolExecutor() as threads:
        answers = [threads.submit(calls) for _ in range(3)]
        try:
            for number in range(200):
                replace(path, (b"disabled", b"byok")[number % 2])
                if number % 20 == 0:
                    server.process.send_signal(signal.SIGHUP)
                if number % 10 == 0:
                    assert now(server) == (DISABLED, BYOK)[number % 2]
        finally:
            done.set()
        assert set().union(*(answer.result() for answer in answers)) == {BYOK, DISABLED}
    assert now(server) == BYOK
