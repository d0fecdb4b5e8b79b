"""The published org default: fixed, or in a file that changes while the server runs."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from billing_grpc import watched_file
from billing_grpc.server.org_default import FileOrgDefault, FixedOrgDefault


def test_a_fixed_default_is_what_was_given() -> None:
    fixed = FixedOrgDefault(" BYOK ")
    fixed.reload()

    assert fixed.current() == " BYOK "


def test_a_file_is_read_again_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "mode"
    path.write_text("byok\n")
    published = FileOrgDefault(path)
    assert published.current() == "byok\n"

    path.write_text("disabled\n")

    assert published.current() == "disabled\n"


def test_a_file_is_read_again_when_another_takes_its_place(tmp_path: Path) -> None:
    # As orchestrators do it: a symbolic link is swapped, size and even time may be the same.
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "mode"
    old.write_text("byok")
    new.write_text("BYOX")
    os.utime(old, ns=(1, 1))
    os.utime(new, ns=(1, 1))
    link.symlink_to(old)
    published = FileOrgDefault(link)
    assert published.current() == "byok"

    (tmp_path / "swap").symlink_to(new)
    (tmp_path / "swap").rename(link)

    assert published.current() == "BYOX"


UNREADABLE = {
    "removed": lambda path: path.unlink(),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "not UTF-8": lambda path: path.write_bytes(b"byok\xff"),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("breaks", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_counts_as_unset_until_it_can(breaks: object, tmp_path: Path) -> None:
    path = tmp_path / "mode"
    path.write_text("byok")
    published = FileOrgDefault(path)

    assert callable(breaks)
    breaks(path)
    assert published.current() is None

    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_text("disabled")
    assert published.current() == "disabled"


def test_reload_looks_again_even_if_nothing_seems_to_have_changed(tmp_path: Path) -> None:
    path = tmp_path / "mode"
    path.write_text("byok")
    published = FileOrgDefault(path)
    path.unlink()

    published.reload()

    assert published.current() is None


@pytest.mark.parametrize("text", ["byok" + " " * 4092 + "x", "byok" + " " * 100_000], ids=["and more", "and space"])
def test_a_file_too_long_is_unset_and_never_cut_until_it_is_a_mode(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mode"
    path.write_text(text)

    with capture_logs() as logs:
        assert FileOrgDefault(path).current() is None

    assert [entry["problem"] for entry in logs] == ["longer than 4096 bytes"]


def test_a_pipe_in_the_files_place_is_unset_and_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "mode"
    os.mkfifo(path)

    assert FileOrgDefault(path).current() is None


LOGGED = {
    "a mode": (" BYOK\n", "byok"),
    "a secret": ("sk-ant-api03-secret", "unrecognised"),
    "a space of another alphabet": ("\u00a0", "unrecognised"),
    "space": (" \n", "unset"),
    "empty": ("", "unset"),
}


@pytest.mark.parametrize(("text", "logged"), LOGGED.values(), ids=LOGGED)
def test_the_log_says_what_a_file_means_and_not_what_it_says(text: str, logged: str, tmp_path: Path) -> None:
    path = tmp_path / "mode"
    path.write_text(text)

    with capture_logs() as logs:
        FileOrgDefault(path)

    assert [entry["org_default"] for entry in logs] == [logged]
    assert "secret" not in str(logs)


def test_a_read_that_fails_closes_and_is_tried_again_soon_without_flooding_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now, tries = tmp_path / "mode", 1000.0, 0
    path.write_text("byok")
    monkeypatch.setattr(watched_file, "time", SimpleNamespace(monotonic=lambda: now))

    def refuse(*_: Any) -> int:
        nonlocal tries
        tries += 1
        raise OSError(24, "Too many open files")

    published = FileOrgDefault(path)
    path.write_text("disabled")
    with monkeypatch.context() as only_here, capture_logs() as logs:
        only_here.setattr(watched_file, "os", SimpleNamespace(**{**vars(os), "open": refuse}))
        for _ in range(1100):  # eleven seconds
            assert published.current() is None
            now += 0.01
    assert 50 <= tries <= 56
    assert [entry["problem"] for entry in logs] == ["Too many open files"] * 2

    now += 0.2
    assert published.current() == "disabled"


def test_an_unreadable_file_is_named_again_while_it_lasts_though_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now = tmp_path / "mode", 1000.0
    monkeypatch.setattr(watched_file, "time", SimpleNamespace(monotonic=lambda: now))
    path.write_bytes(b"\xff")

    with capture_logs() as logs:
        published = FileOrgDefault(path)
        for _ in range(250):
            assert published.current() is None
            now += 0.1

    assert [entry["problem"] for entry in logs] == ["not UTF-8"] * 3


@pytest.mark.parametrize(("text", "lines"), [("BYOKK", 1), ("byok", 0), (" ", 0), (None, 0)])
def test_a_fixed_text_that_is_no_mode_is_said_without_its_words(text: str | None, lines: int) -> None:
    with capture_logs() as logged:
        assert FixedOrgDefault(text).current() == text
    assert [line["log_level"] for line in logged] == ["warning"] * lines
    assert "BYOKK" not in str(logged)
