"""The plan for a container's environment."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_grpc.model import Resolution, ResolutionError, StoredOverride
from billing_grpc.provision import apply, plan
from billing_grpc.resolver import resolve
from billing_grpc.secret_keys import KeyList, normalise
from billing_grpc.suspects import suspect_keys

BLOCKED_KEYS = tuple(sorted(KeyList().names))

KEYS = KeyList()
CLOSED = resolve("", StoredOverride("platform_managed"), None)
DEGRADED = resolve("", ResolutionError("DATABASE_TIMEOUT", "late"), "byok")
OPEN = [resolve("", StoredOverride(text), None) for text in ("byok", "disabled")]


@pytest.mark.parametrize("resolution", [CLOSED, DEGRADED], ids=["closed", "degraded"])
def test_a_closed_plan_strips_the_whole_list_and_routes_via_the_proxy(resolution: Resolution) -> None:
    closed = plan(resolution, KEYS)

    assert closed.strip_keys == tuple(sorted(BLOCKED_KEYS))
    assert closed.route_via_platform_proxy


@pytest.mark.parametrize("resolution", OPEN, ids=lambda each: each.mode.value)
def test_an_open_plan_strips_nothing_whatever_the_environment_holds(resolution: Resolution) -> None:
    opened = plan(resolution, KEYS, ["OPENAI_API_KEY", "openai_api_key", "PATH"])

    assert opened.strip_keys == ()
    assert not opened.route_via_platform_proxy


@pytest.mark.parametrize("resolution", [CLOSED, DEGRADED, *OPEN], ids=lambda each: each.reason[:24])
def test_both_variables_are_set_in_every_mode(resolution: Resolution) -> None:
    assert plan(resolution, KEYS).set_env == {
        "MOLECULE_LLM_BILLING_MODE": resolution.mode.value,
        "MOLECULE_LLM_BILLING_MODE_RESOLVED": resolution.mode.value,
    }


def test_a_key_in_another_spelling_is_stripped_as_it_is_spelt() -> None:
    present = ["openai_api_key", " Hf_Token ", "OPENAI_API_KEY", "PATH", "openai_api_key"]

    assert plan(CLOSED, KEYS, present).strip_keys == (" Hf_Token ", "OPENAI_API_KEY", "openai_api_key")


@pytest.mark.parametrize("name", ["", "=", "A B", "1", "A" * 5000, "\x00", "caf\u00e9", "MY_OPENAI_API_KEY"])
def test_a_name_that_cannot_match_is_ignored(name: str) -> None:
    assert plan(CLOSED, KEYS, [name]).strip_keys == ()


@pytest.mark.parametrize("name", ["MOLECULE_LLM_BILLING_MODE", "molecule_llm_usage_token", "MOLECULE_LLM_PROXY_URL"])
def test_the_platforms_own_variables_are_never_stripped(name: str) -> None:
    mistaken = KeyList([name.upper()])

    assert plan(CLOSED, mistaken, [name, name.upper()]).strip_keys == ()
    assert plan(CLOSED, mistaken).strip_keys == BLOCKED_KEYS


def test_the_largest_request_is_planned_in_under_20_ms() -> None:
    names = [f"NAME_{number}_".ljust(256, "X") for number in range(4096)]

    def seconds() -> float:
        began = time.process_time()
        assert plan(CLOSED, KEYS, names).strip_keys == suspect_keys(names, KEYS) == ()
        return time.process_time() - began

    assert min(seconds() for _ in range(5)) < 0.02


def test_extra_keys_are_stripped_too() -> None:
    assert "NEW_VENDOR_KEY" in plan(CLOSED, KeyList(["NEW_VENDOR_KEY"])).strip_keys


@given(
    names=st.lists(
        st.one_of(st.text(max_size=20), st.sampled_from(BLOCKED_KEYS), st.sampled_from(BLOCKED_KEYS).map(str.lower))
    )
)
def test_asking_again_with_what_is_left_finds_nothing_to_strip(names: list[str]) -> None:
    stripped = set(plan(CLOSED, KEYS, names).strip_keys)
    left = [name for name in names if name not in stripped]

    assert plan(CLOSED, KEYS, left).strip_keys == ()
    assert not [name for name in left if normalise(name) in BLOCKED_KEYS]


def test_applying_a_plan_strips_every_spelling_sets_what_it_sets_and_leaves_the_rest() -> None:
    env = {
        "PATH": "/bin:/usr/bin",
        "openai_api_key": "sk-1",
        " Hf_Token ": "hf-1",
        "OPENAI_API_KEY": "sk-2",
        "MY_OPENAI_API_KEY": "kept",
        "MOLECULE_LLM_BILLING_MODE": "byok",
        "MOLECULE_LLM_USAGE_TOKEN": "kept",
        "ODD": "a\nb=c\udcff",
        "caf\udce9": "kept",
        "": "no variable",
    }
    before = dict(env)

    after = apply(plan(CLOSED, KEYS), env)

    assert env == before
    assert after == {
        "PATH": "/bin:/usr/bin",
        "MY_OPENAI_API_KEY": "kept",
        "MOLECULE_LLM_USAGE_TOKEN": "kept",
        "ODD": "a\nb=c\udcff",
        "caf\udce9": "kept",
        "MOLECULE_LLM_BILLING_MODE": "platform_managed",
        "MOLECULE_LLM_BILLING_MODE_RESOLVED": "platform_managed",
    }


def test_what_a_late_hook_puts_into_a_closed_environment_goes_too() -> None:
    early = plan(CLOSED, KeyList(["ACME_KEY"]), ["PATH"])
    late = {"PATH": "/bin", "ANTHROPIC_BASE_URL": "https://mine", "export acme_key": "k", "OTHER_KEY": "kept"}

    assert early.strip_keys == ()
    assert apply(early, late).keys() == {"PATH", "OTHER_KEY", *early.set_env}
    # A plan of another process has its names alone: the default set of this release goes with them.
    sent = replace(early, blocked=None)
    assert apply(sent, late).keys() == {"PATH", "OTHER_KEY", "export acme_key", *early.set_env}


def test_a_claude_code_environment_is_planned_applied_and_asked_about_again() -> None:
    env = dict.fromkeys(["PATH", "AWS_REGION", "AWS_ACCESS_KEY_ID", "GITHUB_TOKEN"], "stays") | dict.fromkeys(
        ["ANTHROPIC_BASE_URL", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_USE_BEDROCK", "anthropic_custom_headers"], "goes"
    )

    first = plan(CLOSED, KEYS, env)
    after = apply(first, env)

    assert set(first.strip_keys) == {name for name, what in env.items() if what == "goes"}
    assert {name: value for name, value in after.items() if name not in first.set_env} == {
        name: what for name, what in env.items() if what == "stays"
    }
    assert plan(CLOSED, KEYS, after).strip_keys == ()


def test_applying_an_open_plan_leaves_the_keys() -> None:
    env = {"OPENAI_API_KEY": "sk", "MOLECULE_LLM_BILLING_MODE": "forged"}

    assert apply(plan(OPEN[0], KEYS), env) == {"OPENAI_API_KEY": "sk", **plan(OPEN[0], KEYS).set_env}


def test_a_stripped_name_that_is_none_of_a_key_is_taken_literally() -> None:
    odd = replace(plan(OPEN[0], KEYS), strip_keys=("A B",))

    assert "A B" not in apply(odd, {"A B": "x", "a b": "y"})
    assert "a b" in apply(odd, {"A B": "x", "a b": "y"})


# As Python shows a byte that is no UTF-8.
@pytest.mark.parametrize("name", ["\udcffOPENAI_API_KEY", "openai_api_key\udc80", "\udcefHF_TOKEN\udcbb"])
def test_a_name_beside_bytes_that_are_no_text_goes(name: str) -> None:
    assert name in plan(CLOSED, KEYS, [name]).strip_keys
    assert name not in apply(plan(CLOSED, KEYS), {name: "sk"})


# Windows gives a program of an older code page the nearest ASCII letter; Python upper-cases every name there.
AS_WINDOWS_READS = {
    "full width": "\uff2f\uff30\uff25\uff2e\uff21\uff29_API_KEY",
    "accented": "\u014cPENAI_API_KEY",
    "a combining mark": "OPENA\u0301I_API_KEY",
    "dotless i": "opena\u0131_ap\u0131_key",
    "long s": "HERME\u017f_CUSTOM_API_KEY",
    "kelvin sign": "OPENAI_API_\u212aEY",
    "between odd characters": "\ufeff\uff2fPENAI_API_KEY",
}


@pytest.mark.parametrize("name", AS_WINDOWS_READS.values(), ids=AS_WINDOWS_READS)
def test_a_name_that_windows_reads_as_a_listed_one_goes(name: str) -> None:
    assert name in plan(CLOSED, KEYS, [name]).strip_keys
    assert name not in apply(plan(CLOSED, KEYS), {name: "sk"})


@pytest.mark.parametrize("name", ["\u041ePENAI_API_KEY", "OPEN\u04d4I_API_KEY", "1OPENAI_API_KEY", "302OPENAI_API_KEY"])
def test_a_name_that_only_looks_like_a_listed_one_stays(name: str) -> None:
    assert name not in plan(CLOSED, KEYS, [name]).strip_keys


def test_a_name_that_ends_as_only_a_listed_one_does_goes() -> None:
    assert apply(plan(CLOSED, KeyList(["ACME."])), {"acme.": "k", '"ACME."': "k", "acme": "kept"}).keys() == {
        "acme",
        *plan(CLOSED, KEYS).set_env,
    }


@given(st.dictionaries(st.text() | st.sampled_from([*BLOCKED_KEYS, "hf_token", " Hf_Token\n", "PATH"]), st.text()))
def test_after_a_closed_plan_nothing_is_left_to_strip(env: dict[str, str]) -> None:
    once = apply(plan(CLOSED, KEYS, env), env)

    assert apply(plan(CLOSED, KEYS, once), once) == once
    assert not [key for key in once if KEYS.holds(key)]


JUNK = st.text(st.characters(exclude_categories=["L", "N"], exclude_characters="_"), max_size=3)


@given(JUNK, st.sampled_from(BLOCKED_KEYS) | st.sampled_from(BLOCKED_KEYS).map(str.lower), JUNK)
def test_no_listed_name_stays_between_characters_that_no_name_has(before: str, name: str, after: str) -> None:
    odd = before + name + after

    assert apply(plan(CLOSED, KEYS), {odd: "sk"}) == plan(CLOSED, KEYS).set_env
    assert odd in plan(CLOSED, KEYS, [odd]).strip_keys
    assert apply(plan(OPEN[0], KEYS), {odd: "sk"})[odd] == "sk"
