"""The tokens file while the server runs: a change is noticed, a broken file changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from billing_grpc.credentials import token_digest
from billing_grpc.errors import SettingsError
from billing_grpc.principals_file import PrincipalsFile


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

    path.write_text(content("mended"))
    assert principals.current().by_token("mended") is not None
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
