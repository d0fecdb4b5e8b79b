"""The key list and the verdicts on secrets."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from billing_grpc.catalogue import NameSet
from billing_grpc.model import NO_WORKSPACE, Resolution, ResolutionError, SecretVerdict, StoredOverride
from billing_grpc.resolver import resolve, resolve_new_workspace, resolve_organisation
from billing_grpc.secret_keys import KeyList, NameFinder, is_reserved, names_in, normalise

BLOCKED_KEYS = tuple(sorted(KeyList().names))

WORKSPACE = "7f1fc6a0-0000-4000-8000-000000000001"
ALLOWED = SecretVerdict.ALLOWED
BLOCKED = SecretVerdict.BLOCKED_PLATFORM_MANAGED
RESERVED = SecretVerdict.BLOCKED_RESERVED

CLOSED = resolve(WORKSPACE, StoredOverride("platform_managed"), None)
DEGRADED = resolve(WORKSPACE, ResolutionError("DATABASE_TIMEOUT", "late"), "byok")
OPEN = resolve(WORKSPACE, StoredOverride("byok"), None)
DISABLED = resolve(WORKSPACE, StoredOverride("disabled"), None)
INHERITS_OPEN = resolve(WORKSPACE, NO_WORKSPACE, "byok")

PUBLISHED = """
AI_GATEWAY_API_KEY, ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN, ARCEEAI_API_KEY, CLAUDE_CODE_OAUTH_TOKEN,
CODEX_AUTH_JSON, DASHSCOPE_API_KEY, DEEPSEEK_API_KEY, GEMINI_API_KEY, GLM_API_KEY, HERMES_CUSTOM_API_KEY,
HERMES_CUSTOM_BASE_URL, HF_TOKEN, KIMI_API_KEY, KIMI_CN_API_KEY, MINIMAX_API_KEY, MINIMAX_CN_API_KEY, NOUS_API_KEY,
OPENAI_API_KEY, OPENAI_BASE_URL, OPENROUTER_API_KEY, XAI_API_KEY, ZAI_API_KEY
"""

VERDICTS = {
    "vendor key, closed": ("OPENAI_API_KEY", CLOSED, BLOCKED),
    "vendor key, degraded": ("OPENAI_API_KEY", DEGRADED, BLOCKED),
    "vendor key, no resolution": ("OPENAI_API_KEY", None, BLOCKED),
    "vendor key, byok": ("OPENAI_API_KEY", OPEN, ALLOWED),
    "vendor key, disabled": ("OPENAI_API_KEY", DISABLED, ALLOWED),
    "vendor key, inherited byok": ("OPENAI_API_KEY", INHERITS_OPEN, ALLOWED),
    "vendor key in another spelling": (" openai_Api_Key\t", CLOSED, BLOCKED),
    "vendor key before a character that programs drop": ("OPENAI_API_KEY.", CLOSED, BLOCKED),
    "vendor key before such a character, byok": ("openai_api_key-", OPEN, ALLOWED),
    "other key, closed": ("SLACK_TOKEN", CLOSED, ALLOWED),
    "other key, no resolution": ("SLACK_TOKEN", None, ALLOWED),
    "a vendor key's name as a part of another": ("MY_OPENAI_API_KEY", CLOSED, ALLOWED),
    "reserved, byok": ("MOLECULE_LLM_USAGE_TOKEN", OPEN, RESERVED),
    "reserved, no resolution": ("MOLECULE_LLM_USAGE_TOKEN", None, RESERVED),
    "reserved in another spelling": ("  molecule_llm_x", OPEN, RESERVED),
    "reserved prefix alone": ("MOLECULE_LLM_", OPEN, RESERVED),
    "not quite reserved": ("MOLECULE_LLM", CLOSED, ALLOWED),
}


def judge(key: str, resolution: Resolution | None, *, org_wide: bool = False) -> tuple[SecretVerdict, str]:
    name = normalise(key)
    assert name is not None
    verdict = KeyList().judge(key, name, resolution, org_wide=org_wide)
    assert verdict.secret_key == key
    return verdict.verdict, verdict.message


def test_core_is_the_published_list() -> None:
    assert KeyList(name_set=NameSet.CORE).names == set(PUBLISHED.replace(",", " ").split())


@pytest.mark.parametrize(("key", "resolution", "expected"), VERDICTS.values(), ids=VERDICTS)
def test_every_verdict(key: str, resolution: Resolution | None, expected: SecretVerdict) -> None:
    assert judge(key, resolution)[0] is expected


def test_every_listed_key_is_blocked_while_closed_and_allowed_while_open() -> None:
    for key in BLOCKED_KEYS:
        assert judge(key, CLOSED)[0] is BLOCKED, key
        assert judge(key.lower(), OPEN)[0] is ALLOWED, key


@pytest.mark.parametrize(
    "key",
    ["", " ", ".KEY", "A B", "KEY=", "K\u00c9Y", "A\nB", "-A", "A" * 257, "OPENA\u0131_API_KEY", "OPENAI_API_KEY\x00"],
)
def test_what_cannot_be_a_name_is_not_normalised(key: str) -> None:
    assert normalise(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "_",
        "a",
        "9key",
        "302ai_API_KEY",
        "A.b-c_9",
        "A" * 256,
        " " * 300 + "A" * 256 + " " * 300,
        "\n OPENAI_API_KEY \r\n",
    ],
)
def test_what_can_be_a_name_is_trimmed_and_upper_cased(key: str) -> None:
    assert normalise(key) == key.strip().upper()


@given(key=st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_no_spelling_turns_into_a_listed_name_but_case_and_outer_space(key: str) -> None:
    name = normalise(key)
    if name is not None and (KeyList().needs_mode(name) or is_reserved(name)):
        assert key.strip().isascii()
        assert key.strip().upper() == name


@given(
    variable=st.text(alphabet=st.sampled_from("AaKk_.-1 =\ufeff\u00e9\u0131\uff21\uff0d\u212a\u0301"), max_size=8),
    names=st.sets(st.text(alphabet="AK_I.-1", min_size=1, max_size=4).filter(normalise), max_size=4),
)
@example(variable="\uff0dA\uff21", names={"AA"})
def test_a_finder_finds_what_a_program_could_read(variable: str, names: set[str]) -> None:
    assert NameFinder(names).holds(variable) is not names.isdisjoint(names_in(variable))


WINDOWS_SPELLINGS = (
    "OPENAI_API_K\u03b5Y",
    "\u03a9PENAI_AP\u0197_KEY",
    "\u00d8penai_api_key",
    "OPENAI\u02cdAPI\u0332KEY",
    "G\u0141M_API_KEY",
    "OP\u212eNAI_API_KEY",
    "\uff2fPENAI_API_KEY",
    "OPENA\u0130_AP\u0131_\u212aEY",
    "HF_\u0166O\u212aEN",
    "OPE\u00d1AI_API_KEY",
    # Central European, Turkish and Arabic Windows.
    "OPEN\u00c6I_API_KE\u00a5",
    "H\u0191_TOKEN",
    "\u0152PENAI_API_KEY",
    "\u0189EEPSEEK_API_KEY",
    "\u0663\u0660\u0662AI_API_KEY",
    # Chinese and Japanese Windows.
    "\u00d0EEP\u00dfEEK_API_K\u00f0Y",
    "HF_\u00deOKEN",
    "hf_\u00feoken",
    "OPEN\u00aeOUTER_API_KEY",
    "ANTHROPI\u00a9_API_KEY",
)


@pytest.mark.parametrize("variable", WINDOWS_SPELLINGS)
def test_a_letter_that_windows_replaces_hides_no_vendor_key(variable: str) -> None:
    assert KeyList().holds(variable)
    assert not KeyList().names.isdisjoint(names_in(variable))


def test_extra_names_are_added_and_the_list_is_never_shortened() -> None:
    keys = KeyList(("NEW_VENDOR_KEY", "OPENAI_API_KEY"))

    assert set(keys.names) == {*BLOCKED_KEYS, "NEW_VENDOR_KEY"}
    assert keys.judge("new_vendor_key", "NEW_VENDOR_KEY", CLOSED, org_wide=False).verdict is BLOCKED


MESSAGES = {
    "closed": (CLOSED, False, ["platform's proxy", f"billing-grpc set {WORKSPACE} byok", "SetWorkspaceBillingMode"]),
    "before it exists": (resolve_new_workspace(None), False, ["platform's proxy", "create the workspace", "byok"]),
    "degraded": (DEGRADED, False, ["could not be read", "retry"]),
    "org-wide": (resolve_organisation(None), True, ["organisation's default", "proxy", "byok"]),
}


@pytest.mark.parametrize(("resolution", "org_wide", "parts"), MESSAGES.values(), ids=MESSAGES)
def test_a_refusal_says_what_to_do(resolution: Resolution, org_wide: bool, parts: list[str]) -> None:
    message = judge("OPENAI_API_KEY", resolution, org_wide=org_wide)[1]

    assert all(part in message for part in parts), message


def test_a_message_repeats_at_most_64_characters_of_a_key() -> None:
    message = judge("MOLECULE_LLM_" + "X" * 200, CLOSED)[1]

    assert "X" * 51 in message
    assert "X" * 52 not in message
