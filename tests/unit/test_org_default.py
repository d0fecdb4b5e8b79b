"""The published org default: fixed, or in a file that changes while the server runs."""

import os
from pathlib import Path

import pytest

from billing_grpc.org_default import FileOrgDefault, FixedOrgDefault


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


def test_a_file_that_is_no_word_is_cut_and_not_recognised(tmp_path: Path) -> None:
    path = tmp_path / "mode"
    path.write_text("byok" + " " * 100_000)

    text = FileOrgDefault(path).current()

    assert text is not None
    assert len(text) <= 4096
