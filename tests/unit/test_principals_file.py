"""The tokens file while the server runs: a change is noticed, a broken file changes nothing."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from billing_grpc import watched_file
from billing_grpc.errors import SettingsError
from billing_grpc.server.auth.principals import token_digest
from billing_grpc.server.auth.principals_file import PrincipalsFile


def content(*tokens: str) -> str:
    digests = ", ".join(f'"{token_digest(token)}"' for token in tokens)
    return f'[[principal]]\nname = "controlplane"\nrole = "admin"\ntoken_sha256 = [{digests}]\n'


def test_a_new_token_works_at_once_and_a_removed_one_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(content("old"))
    principals = PrincipalsFile(path)

    path.write_text(content("old", "new"))
    assert principals.current().by_token("old") == principals.current().by_token("new") is not None

    path.write_text(content("new"))
    assert principals.current().by_token("old") is None
    assert principals.current().by_token("new") is not None


BREAKS: dict[str, Callable[[Path], Any]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_text(""),
    "cut short": lambda path: path.write_text(content("new")[:-20]),
    "not UTF-8": lambda path: path.write_bytes(b"\xff"),
    "too long": lambda path: path.write_text("#" * (256 << 10) + "\n" + content("new")),
    "a pipe": lambda path: [make(path) for make in (Path.unlink, os.mkfifo)],
    "a number of 5000 digits": lambda path: path.write_text("a = " + "1" * 5000),
    "deeply nested": lambda path: path.write_text("a = " + "[" * 100_000),
    "an unhashable role": lambda path: path.write_text('[[principal]]\nname = "a"\nrole = []\n'),
}


@pytest.mark.parametrize("breaks", BREAKS.values(), ids=BREAKS)
def test_a_broken_file_keeps_the_old_one_in_force_and_says_so(breaks: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(content("old"))
    principals = PrincipalsFile(path)
    breaks(path)

    with capture_logs() as logs:
        assert principals.current().by_token("old") is not None
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [
        ("error", "tokens file is broken, the old one stays in force")
    ]

    path.unlink(missing_ok=True)
    path.write_text(content("mended"))
    assert principals.current().by_token("mended") is not None
    assert principals.current().by_token("old") is None


def test_a_digest_swapped_in_place_for_another_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(content("old"))
    principals = PrincipalsFile(path)
    before = path.stat()
    time.sleep(0.02)  # the file system's clock ticks every few milliseconds

    with path.open("r+") as file:
        file.write(content("new"))

    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
    assert principals.current().by_token("old") is None
    assert principals.current().by_token("new") is not None


def test_a_swap_in_place_is_noticed_even_if_the_time_of_the_change_is_set_back(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(content("old"))
    principals = PrincipalsFile(path)
    before = path.stat()
    time.sleep(0.02)

    with path.open("r+") as file:
        file.write(content("new"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert principals.current().by_token("old") is None


@pytest.mark.parametrize("breaks", [BREAKS["cut short"], BREAKS["gone"]], ids=["broken", "unreadable"])
def test_a_broken_file_is_named_every_ten_seconds_until_it_is_mended(
    breaks: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now = tmp_path / "tokens.toml", 1000.0
    monkeypatch.setattr(watched_file, "time", SimpleNamespace(monotonic=lambda: now))
    path.write_text(content("old"))
    principals = PrincipalsFile(path)
    breaks(path)

    with capture_logs() as logs:
        for _ in range(250):
            principals.current()
            now += 0.1
        assert len(logs) == 3
        principals.reload()
        assert len(logs) == 4, "who asks is told"
    path.write_text(content("mended"))
    with capture_logs() as logs:
        for _ in range(250):
            principals.current()
            now += 0.1
    assert [entry["event"] for entry in logs] == ["tokens file read"]


def test_a_revocation_is_not_lost_to_a_read_that_failed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = tmp_path / "tokens.toml", 1000.0
    monkeypatch.setattr(watched_file, "time", SimpleNamespace(monotonic=lambda: now))
    path.write_text(content("old"))
    principals = PrincipalsFile(path)

    def refuse(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    path.write_text(content("something else"))
    with monkeypatch.context() as only_here, capture_logs() as logs:
        only_here.setattr(watched_file, "os", SimpleNamespace(**{**vars(os), "open": refuse}))
        assert principals.current().by_token("old") is not None
    assert "Too many open files" in str(logs)

    now += 1
    assert principals.current().by_token("old") is None


def test_a_server_does_not_start_with_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        PrincipalsFile(tmp_path / "nowhere")


def test_reading_the_file_logs_names_and_never_digests(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(content("old"))
    principals = PrincipalsFile(path)

    with capture_logs() as logs:
        principals.reload()

    assert "controlplane" in str(logs)
    assert token_digest("old") not in str(logs)
