"""A watched file: read whole or not at all, and read again whenever it may say something else."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from billing_grpc import watched_file
from billing_grpc.watched_file import REPEAT_SECONDS, Complaint, WatchedFile
from tests.support.clocks import Clock

MAX = 16


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(watched_file, "time", made)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(b"first")
    return made


def test_a_file_is_read_once_until_it_changes(path: Path) -> None:
    file = WatchedFile(path, MAX)
    assert file.changed()
    assert file.read() == b"first"
    assert not file.changed()

    path.write_bytes(b"the second")

    assert file.changed()
    assert file.read() == b"the second"
    assert not file.changed()


def test_a_file_that_is_gone_or_back_has_changed(path: Path) -> None:
    file = WatchedFile(path, MAX)
    file.read()
    path.unlink()
    assert file.changed()
    with pytest.raises(FileNotFoundError):
        file.read()
    path.write_bytes(b"first")
    assert file.changed()


@pytest.mark.parametrize(("size", "fits"), [(MAX, True), (MAX + 1, False), (100 * MAX, False)])
def test_a_file_longer_than_the_maximum_is_not_read_in_part(path: Path, size: int, fits: bool) -> None:
    path.write_bytes(b"x" * size)
    file = WatchedFile(path, MAX)
    if fits:
        assert len(file.read()) == size
    else:
        with pytest.raises(OSError, match="longer than 16 bytes"):
            file.read()


PLACES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (os.mkfifo, "not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a directory": (Path.mkdir, "Is a directory"),
}


@pytest.mark.parametrize(("make", "says"), PLACES.values(), ids=PLACES)
def test_what_is_no_regular_file_is_refused_at_once(make: Callable[[Path], Any], says: str, path: Path) -> None:
    path.unlink()
    make(path)
    before = psutil.Process().num_fds()

    with pytest.raises(OSError, match=says):
        WatchedFile(path, MAX).read()

    assert psutil.Process().num_fds() == before


def test_a_read_that_failed_is_tried_again_after_a_pause_though_the_file_is_the_same(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    file = WatchedFile(path, MAX, retry_seconds=1)
    file.read()
    path.write_bytes(b"revoked")
    with monkeypatch.context() as only_here:
        only_here.setattr(watched_file, "os", SimpleNamespace(**{**vars(os), "open": refuse}))
        with pytest.raises(OSError, match="Too many"):
            file.read()

    assert not file.changed()
    clock.now += 0.99
    assert not file.changed()
    clock.now += 0.02
    assert file.changed()
    assert file.read() == b"revoked"
    clock.now += 10
    assert not file.changed()


def test_a_file_that_changes_after_a_failed_read_is_read_without_a_pause(path: Path, clock: Clock) -> None:
    del clock
    file = WatchedFile(path, MAX)
    path.write_bytes(b"x" * 100)
    with pytest.raises(OSError, match="longer"):
        file.read()
    assert not file.changed()

    path.write_bytes(b"mended")

    assert file.changed()


def test_a_change_during_the_read_is_seen_the_next_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(*arguments: Any) -> int:
        opened = os.open(*arguments)
        beside = path.with_name("beside")
        beside.write_bytes(b"later")
        beside.replace(path)
        return opened

    file = WatchedFile(path, MAX)
    with monkeypatch.context() as only_here:
        only_here.setattr(watched_file, "os", SimpleNamespace(**{**vars(os), "open": overtaken}))
        assert file.read() == b"first"

    assert file.changed()
    assert file.read() == b"later"


# id: the time of the last change, in nanoseconds, and how long one later may look the same
GRAINS: dict[str, tuple[int, float]] = {
    "most file systems": (1_500_000_001, 0.05),
    "whole seconds": (1_000_000_000, 2.0),
}


@pytest.mark.parametrize(("changed_at", "grain"), GRAINS.values(), ids=GRAINS)
def test_a_change_that_no_stat_shows_is_noticed(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, changed_at: int, grain: float
) -> None:
    monkeypatch.setattr(WatchedFile, "_signature", lambda _: (1, 2, 5, changed_at, changed_at))
    file = WatchedFile(path, MAX)
    file.read()
    for text in (b"secnd", b"third"):
        clock.now += grain * 0.9
        assert not file.changed()
        path.write_bytes(text)
        clock.now += 60  # nobody asks for long
        assert file.changed()
        assert file.read() == text


def test_a_file_that_has_settled_costs_one_stat(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    file = WatchedFile(path, MAX)
    file.read()
    clock.now += 3
    assert not file.changed()

    def opened(*_: Any) -> int:
        pytest.fail("was read again")

    monkeypatch.setattr(watched_file, "os", SimpleNamespace(**{**vars(os), "open": opened}))
    assert not file.changed()


def test_a_file_that_cannot_be_read_any_more_has_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WatchedFile, "_signature", lambda _: (1, 2, 5, 3, 3))
    file = WatchedFile(path, MAX)
    file.read()
    path.unlink()
    assert file.changed()


def test_a_problem_is_said_at_once_when_it_is_another_and_then_every_ten_seconds(clock: Clock) -> None:
    complaint = Complaint()
    assert complaint.due("a")
    assert not complaint.due("a")
    assert complaint.due("b")
    clock.now += REPEAT_SECONDS - 0.1
    assert not complaint.due("b")
    clock.now += 0.2
    assert complaint.due("b")
    complaint.over()
    assert complaint.due("b")
