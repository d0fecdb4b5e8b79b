"""Names that look like a vendor's and are in no set: found, logged once, and never blocked."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from billing_grpc.catalogue import NameSet, load
from billing_grpc.secret_keys import KeyList
from billing_grpc.server.decision_log import MAX_SUSPECTS, DecisionLog
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.suspects import suspect_keys

KEYS = KeyList()
ORDINARY_NAMES = Path(__file__).with_name("ordinary_names.txt").read_text().split()

SUSPECTS = {
    "a word of models": "NEW_LLM_API_KEY",
    "a vendor's tail": "NEWVENDORAI_API_KEY",
    "a known vendor's new name": "ANTHROPIC_NEXT_TOKEN",
    "a prefix": "MY_OPENAI_API_KEY",
    "a number": "OPENAI_API_KEY_2",
    "an address": "NEW_AI_BASE_URL",
    "a host": "NEWGPT_HOST",
    "in lower case": "newvendorai_api_key",
}
STAYS_QUIET = {
    "a listed name": "OPENAI_API_KEY",
    "a listed name in another spelling": " openai_api_key",
    "a general name": "GITHUB_TOKEN",
    "a name of media models": "ELEVENLABS_API_KEY",
    "the platform's own": "MOLECULE_LLM_API_KEY",
    "no ending": "OPENAI_MODEL",
    "an ordinary key": "ACME_API_KEY",
    "an ordinary address": "ACME_BASE_URL",
    "a town": "DUBAI_OFFICE_TOKEN",
    "no name": "NEW AI API_KEY=sk",
    "a value by mistake": "sk_ai_" + "x" * 60 + "_KEY",
}


@pytest.mark.parametrize("name", SUSPECTS.values(), ids=SUSPECTS)
def test_a_name_like_a_vendors_is_a_suspect(name: str) -> None:
    assert suspect_keys(["PATH", name, name], KEYS) == (name,)


@pytest.mark.parametrize("name", STAYS_QUIET.values(), ids=STAYS_QUIET)
def test_other_names_are_no_suspects(name: str) -> None:
    assert suspect_keys(["PATH", name], KEYS) == ()


@pytest.mark.parametrize("address", ["NEW_BASE_URL", "new_api_base"])
def test_a_key_beside_an_address_of_its_own_is_a_suspect_and_so_is_the_address(address: str) -> None:
    assert suspect_keys(["NEW_API_KEY", address, "OTHER_API_KEY"], KEYS) == tuple(sorted(["NEW_API_KEY", address]))


def test_no_ordinary_name_is_a_suspect() -> None:
    assert suspect_keys(ORDINARY_NAMES, KEYS) == ()


def test_no_name_of_the_catalogue_is_a_suspect_whichever_set_is_blocked() -> None:
    assert suspect_keys(load().entries, KeyList(name_set=NameSet.CORE)) == ()
    assert suspect_keys(["NEWVENDORAI_API_KEY"], KeyList(["NEWVENDORAI_API_KEY"])) == ()


def counted(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("billing_grpc_suspect_keys_total") or 0


def test_a_suspect_is_counted_and_logged_once() -> None:
    metrics = Metrics()
    decisions = DecisionLog(metrics)

    with capture_logs() as logged:
        decisions.suspected(["NEW_AI_API_KEY", "new_ai_api_key"])
        decisions.suspected(["NEW_AI_API_KEY"])

    assert [(each["key"], each["log_level"]) for each in logged] == [("NEW_AI_API_KEY", "warning")]
    assert counted(metrics.registry) == 1


def test_suspects_without_end_are_not_logged_without_end() -> None:
    metrics = Metrics()
    decisions = DecisionLog(metrics)

    with capture_logs() as logged:
        decisions.suspected(f"NEW_AI_{number}_KEY" for number in range(MAX_SUSPECTS + 50))
        decisions.suspected(["NEW_AI_TOKEN"])

    assert counted(metrics.registry) == MAX_SUSPECTS
    assert len(logged) == MAX_SUSPECTS + 1
    assert "not logged" in logged[-1]["event"]
