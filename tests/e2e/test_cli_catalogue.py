"""`billing-grpc catalogue`: it explains names, asks no server and prints no value."""

import json
from pathlib import Path

import pytest

from billing_grpc.catalogue import NameSet, load
from billing_grpc.secret_keys import KeyList
from tests.support.commands import billing_grpc

ENV = (
    b"\xef\xbb\xbfexport OPENAI_API_KEY='sk-secret'\r\nMOLECULE_LLM_TOKEN=t\r\n"
    b"NEWVENDORAI_API_KEY=n\r\nAWS_ACCESS_KEY_ID=a\r\nPATH=p\r\n"
)


def test_list_shows_what_a_set_blocks() -> None:
    core = billing_grpc("catalogue", "list", "--set", "core")
    general = billing_grpc("catalogue", "list", "--set", "general", "--json")

    assert {line.split("\t")[0] for line in core.stdout.splitlines()} == load().names(NameSet.CORE)
    entries = [json.loads(line) for line in general.stdout.splitlines()]
    assert {each["name"] for each in entries} == {name for name, each in load().entries.items() if each.why}
    assert all(each["set"] is None and each["why"] for each in entries)


@pytest.mark.parametrize(
    ("name", "settings", "code", "parts"),
    [
        ("anthropic_base_url", {}, 0, ["agents", "address", "Anthropic", "claude-code", "refused and stripped"]),
        ("AI21_API_KEY", {}, 0, ["vendors", "allowed: the set agents does not hold it"]),
        ("AI21_API_KEY", {"BILLING_GRPC_BLOCKED_KEYS": "vendors"}, 0, ["refused and stripped"]),
        ("GITHUB_TOKEN", {}, 0, ["general", "always allowed", "code host"]),
        ("NEWVENDORAI_API_KEY", {}, 1, ["looks like a vendor's"]),
        ("SLACK_TOKEN", {}, 1, ["not a vendor's"]),
        ("ACME_KEY", {"BILLING_GRPC_EXTRA_BLOCKED_KEYS": "acme_key"}, 1, ["an extra name: refused and stripped"]),
        ("MOLECULE_LLM_X", {}, 1, ["reserved"]),
        ("A B", {}, 2, []),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_show_explains_a_name(name: str, settings: dict[str, str], code: int, parts: list[str]) -> None:
    ended = billing_grpc("catalogue", "show", name, settings=settings)

    assert ended.returncode == code, ended.stderr
    assert all(part in ended.stdout for part in parts), ended.stdout


def test_check_names_what_would_go_and_prints_no_value(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_bytes(ENV)

    lines = billing_grpc("catalogue", "check", str(path))
    answer = billing_grpc("catalogue", "check", str(path), "--json")

    assert [line.split("\t")[:2] for line in lines.stdout.splitlines()] == [
        ["strip", "OPENAI_API_KEY"],
        ["reserved", "MOLECULE_LLM_TOKEN"],
        ["suspect", "NEWVENDORAI_API_KEY"],
        ["general", "AWS_ACCESS_KEY_ID"],
    ]
    assert "secret" not in lines.stdout + lines.stderr
    assert lines.returncode == answer.returncode == 1
    judges = KeyList().catalogue
    assert json.loads(answer.stdout) == {
        "strip": ["OPENAI_API_KEY"],
        "reserved": ["MOLECULE_LLM_TOKEN"],
        "suspect": ["NEWVENDORAI_API_KEY"],
        "general": ["AWS_ACCESS_KEY_ID"],
        "catalogue": {"set": judges.set, "version": judges.version, "digest": judges.digest},
    }


def test_check_of_a_clean_file_or_of_none_ends_as_a_script_expects(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("PATH=/bin\nAWS_REGION=eu\n")

    assert billing_grpc("catalogue", "check", str(tmp_path / "env")).returncode == 0
    assert billing_grpc("catalogue", "check", str(tmp_path / "missing")).returncode == 2
    assert billing_grpc("catalogue", "list", "--set", "everything").returncode == 2
    wrong = billing_grpc("catalogue", "check", "-", settings={"BILLING_GRPC_BLOCKED_KEYS": "everything"})
    assert wrong.returncode == 2
    assert "everything" in wrong.stderr
