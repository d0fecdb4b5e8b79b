"""The catalogue of vendor names: its data, its checks, and the names that it must never hold."""

from pathlib import Path

import pytest

from billing_grpc import catalogue
from billing_grpc.catalogue import Kind, NameSet, load, parse
from billing_grpc.catalogue.programs import PROGRAMS
from billing_grpc.errors import CatalogueError
from billing_grpc.secret_keys import KeyList, normalise

TABLE = load()
# Ordinary secrets and variables of tenants.
ORDINARY_NAMES = Path(__file__).with_name("ordinary_names.txt").read_text().split()
HEAD = "version\t2026-11-26\nname\tkind\tvendor\tset\tread_by\twhy\n"
RIGHT = "ACME_API_KEY\tcredential\tAcme\tagents\tcodex\t-\n"

# By the program that reads it, what has passed unseen, and what was measured to be missing.
BLOCKED_BY_DEFAULT = (
    *("ANTHROPIC_BASE_URL", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "ANTHROPIC_CUSTOM_HEADERS"),
    *("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GEMINI_BASE_URL", "GOOGLE_API_KEY", "CODEX_API_KEY", "CODEX_OSS_BASE_URL"),
    *("302AI_API_KEY", "AWS_BEARER_TOKEN_BEDROCK", "OPENCODE_API_KEY", "OPENAI_API_BASE", "OPENAI_CUSTOM_HEADERS"),
)
KEPT_OUT = ("AWS_ACCESS_KEY_ID", "GITHUB_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "HTTP_PROXY", "ELEVENLABS_API_KEY")


def test_each_set_holds_the_ones_before_it() -> None:
    core, agents, vendors = (TABLE.names(each) for each in NameSet)

    assert core < agents < vendors
    assert len(core) == 23
    assert KeyList().names == agents


@pytest.mark.parametrize("name", BLOCKED_BY_DEFAULT)
def test_what_the_agent_programs_read_is_blocked_by_default(name: str) -> None:
    assert KeyList().needs_mode(name)


@pytest.mark.parametrize("name", KEPT_OUT)
def test_a_general_name_is_in_no_set_and_says_why(name: str) -> None:
    assert name not in TABLE.names(NameSet.VENDORS)
    assert TABLE.entries[name].why


def test_no_set_holds_an_ordinary_name() -> None:
    every = KeyList(name_set=NameSet.VENDORS)

    assert len(set(ORDINARY_NAMES)) >= 200
    assert [name for name in ORDINARY_NAMES if every.holds(name) or every.needs_mode(normalise(name) or "")] == []


def test_a_clouds_address_for_models_alone_is_listed_and_one_for_all_services_is_not() -> None:
    assert KeyList().holds("AWS_ENDPOINT_URL_BEDROCK_RUNTIME")
    assert not KeyList(name_set=NameSet.VENDORS).holds("AWS_ENDPOINT_URL")


def test_the_sets_of_what_programs_in_workspaces_read_leave_nothing_out() -> None:
    agents = TABLE.names(NameSet.AGENTS)
    read = [each for each in TABLE.entries.values() if any(PROGRAMS[one].in_workspaces for one in each.read_by)]

    assert {each.kind for each in read} == set(Kind)
    assert [each.name for each in read if each.name not in agents and not each.why] == []


def test_the_digest_tells_names_apart_and_not_their_order() -> None:
    assert catalogue.digest(["A", "B"]) == catalogue.digest({"B", "A"})
    assert len({catalogue.digest(TABLE.names(each)) for each in NameSet}) == 3
    assert catalogue.digest(["AB"]) != catalogue.digest(["A", "B"])


WRONG = {
    "no version": ("name\tkind\tvendor\tset\tread_by\twhy\n", "begin with a version"),
    "no headings": ("version\t2026-11-26\n" + RIGHT, "begin with a version"),
    "empty": ("", "begin with a version"),
    "two vendors, two kinds": (
        HEAD + RIGHT + "ACME_API_KEY\taddress\tOther\tagents\tcodex\t-\n",
        "ACME_API_KEY: it is listed twice, by Acme as credential and Other as address",
    ),
    "listed twice": (HEAD + RIGHT + RIGHT, "ACME_API_KEY: it is listed twice"),
    "no name": (HEAD + RIGHT.replace("ACME_API", "ACME API"), "ACME API_KEY: not a key's name"),
    "in lower case": (HEAD + RIGHT.replace("ACME", "Acme"), "Acme_API_KEY: not a key's name"),
    "reserved": (HEAD + RIGHT.replace("ACME", "MOLECULE_LLM"), "MOLECULE_LLM_API_KEY: MOLECULE_LLM_* is refused"),
    "an unknown kind": (HEAD + RIGHT.replace("credential", "key"), "ACME_API_KEY: key is no kind"),
    "an unknown set": (HEAD + RIGHT.replace("agents", "all"), "ACME_API_KEY: all is no set"),
    "an unknown program": (HEAD + RIGHT.replace("codex", "emacs"), "ACME_API_KEY: emacs: not all of them"),
    "no vendor": (HEAD + RIGHT.replace("Acme", "-"), "ACME_API_KEY: it needs a vendor"),
    "general without a reason": (HEAD + RIGHT.replace("agents", "general"), "ACME_API_KEY: a name needs a reason"),
    "a reason in a set": (HEAD + RIGHT.replace("-\n", "because\n"), "ACME_API_KEY: a name needs a reason"),
    "too few columns": (HEAD + "ACME_API_KEY\tcredential\n", "ACME_API_KEY: it needs 6 columns"),
    "too many columns": (HEAD + RIGHT.replace("\n", "\tx\n"), "ACME_API_KEY: it needs 6 columns"),
    "not sorted": (HEAD + RIGHT + RIGHT.replace("ACME", "AAA"), "ACME_API_KEY: the lines must be sorted"),
    "readers not sorted": (HEAD + RIGHT.replace("codex", "codex,aider"), "ACME_API_KEY: list its readers sorted"),
    "read in workspaces": (HEAD + RIGHT.replace("agents", "vendors"), "ACME_API_KEY: a program of workspaces reads it"),
}


@pytest.mark.parametrize(("text", "problem"), WRONG.values(), ids=WRONG)
def test_a_catalogue_that_is_wrong_is_an_error_that_names_it(text: str, problem: str) -> None:
    with pytest.raises(CatalogueError) as raised:
        parse(text)

    assert any(each.startswith(problem) or problem in each for each in raised.value.problems), raised.value.problems


def test_every_problem_of_a_catalogue_is_reported_at_once() -> None:
    with pytest.raises(CatalogueError) as raised:
        parse(HEAD + RIGHT.replace("agents", "all") + RIGHT.replace("ACME", "AAA").replace("credential", "key"))

    assert [each.partition(":")[0] for each in raised.value.problems] == ["ACME_API_KEY", "AAA_API_KEY"]


def test_the_file_has_one_line_a_name_and_nothing_else() -> None:
    text = Path(catalogue.__file__).with_name("names.tsv").read_text()
    lines = [line for line in text.split("\n")[:-1] if not line.startswith("#")]

    assert [line.partition("\t")[0] for line in lines[2:]] == sorted(TABLE.entries)
    assert parse(text) == TABLE
