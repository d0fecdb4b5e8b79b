"""What a request must be: refused input names its field, its reason and the remedy."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_grpc import validation
from billing_grpc.errors import InvalidArgument

ID = "7F1FC6A0-0000-4000-8000-00000000000a"

BAD_IDS = {
    "empty": "",
    "braces": f"{{{ID}}}",
    "urn": f"urn:uuid:{ID}",
    "no dashes": ID.replace("-", ""),
    "leading space": f" {ID}",
    "trailing newline": f"{ID}\n",
    "too short": ID[:-1],
    "too long": f"{ID}0",
    "not hexadecimal": ID.replace("7", "g"),
    "full-width digits": ID.replace("0", "\uff10"),
    "dashes elsewhere": "7F1FC6A00-000-4000-8000-00000000000a",
    "NUL": f"{ID}\x00",
}


@pytest.mark.parametrize("text", BAD_IDS.values(), ids=BAD_IDS)
def test_a_malformed_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        validation.workspace_id(text)

    assert refused.value.reason == "WORKSPACE_ID_INVALID"
    assert [violation.field for violation in refused.value.violations] == ["workspace_id"]
    assert "8-4-4-4-12" in refused.value.message


def test_an_id_in_either_case_is_answered_in_lower_case() -> None:
    assert validation.workspace_id(ID) == validation.workspace_id(ID.lower()) == ID.lower()


def test_an_empty_id_may_mean_that_the_workspace_does_not_exist_yet() -> None:
    assert validation.workspace_id_or_none("") is None
    assert validation.workspace_id_or_none(ID) == ID.lower()


def test_a_batch_keeps_order_and_duplicates() -> None:
    other = ID.replace("7", "8")

    assert validation.batch_ids([other, ID, other]) == [other.lower(), ID.lower(), other.lower()]


@pytest.mark.parametrize("text", BAD_IDS.values(), ids=BAD_IDS)
def test_a_malformed_id_in_a_batch_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        validation.batch_ids([ID, text])

    assert [violation.field for violation in refused.value.violations] == ["workspace_ids[1]"]


ids = st.uuids().map(str)
ids_or_similar = st.builds(
    lambda text, at, put, upper: (text.upper() if upper else text)[:at] + put + text[at + 1 :],
    ids,
    st.integers(0, 36),
    st.text(alphabet="0aA-gx,\n\r\x00\uff10\ud800", max_size=2),
    st.booleans(),
)


def is_id(text: str) -> bool:
    try:
        validation.workspace_id(text)
    except InvalidArgument:
        return False
    return True


@given(texts=st.lists(ids | ids_or_similar, min_size=1, max_size=5))
def test_a_batch_takes_exactly_the_ids_that_a_single_call_takes(texts: list[str]) -> None:
    wrong = [f"workspace_ids[{index}]" for index, text in enumerate(texts) if not is_id(text)]

    if not wrong:
        assert validation.batch_ids(texts) == [validation.workspace_id(text) for text in texts]
        return
    with pytest.raises(InvalidArgument) as refused:
        validation.batch_ids(texts)
    assert [each.field for each in refused.value.violations] == wrong


@pytest.mark.parametrize("texts", [[f"{ID}\n{ID}"], [f"{ID}\n{ID}", ""], ["", f"\n{ID}"]], ids=repr)
def test_ids_that_were_joined_are_not_ids(texts: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        validation.batch_ids(texts)


@pytest.mark.parametrize(("count", "remedy"), [(0, "name at least one"), (1001, "split the request")])
def test_a_list_of_the_wrong_length_comes_with_the_right_remedy(count: int, remedy: str) -> None:
    with pytest.raises(InvalidArgument, match=remedy):
        validation.batch_ids([ID] * count)


def test_a_batch_names_its_first_twenty_bad_indexes() -> None:
    with pytest.raises(InvalidArgument) as refused:
        validation.batch_ids([ID, *["bad"] * 30, ""])

    assert [each.field for each in refused.value.violations] == [f"workspace_ids[{index}]" for index in range(1, 21)]


COUNTS: dict[str, tuple[Callable[[list[str]], Any], str, int, bool]] = {
    "no ids": (validation.batch_ids, ID, 0, False),
    "one id": (validation.batch_ids, ID, 1, True),
    "1000 ids": (validation.batch_ids, ID, 1000, True),
    "1001 ids": (validation.batch_ids, ID, 1001, False),
    "no keys": (validation.secret_names, "KEY", 0, False),
    "256 keys": (validation.secret_names, "KEY", 256, True),
    "257 keys": (validation.secret_names, "KEY", 257, False),
    "no env keys": (validation.env_keys, "KEY", 0, True),
    "4096 env keys": (validation.env_keys, "KEY", 4096, True),
    "4097 env keys": (validation.env_keys, "KEY", 4097, False),
}


@pytest.mark.parametrize(("check", "element", "count", "accepted"), COUNTS.values(), ids=COUNTS)
def test_a_list_has_its_bounds(check: Callable[[list[str]], Any], element: str, count: int, accepted: bool) -> None:
    if accepted:
        assert len(check([element] * count)) == count
        return
    with pytest.raises(InvalidArgument) as refused:
        check([element] * count)
    assert refused.value.reason == "COUNT_OUT_OF_RANGE"
    assert f"it holds {count}" in refused.value.message


def test_a_bad_secret_key_is_named_by_its_index_and_never_repeated() -> None:
    # Who pastes a value into the wrong field must not find it in an error log.
    with pytest.raises(InvalidArgument) as refused:
        validation.secret_names(["GOOD", "sk-proj-AbC=="])

    assert refused.value.reason == "SECRET_KEY_INVALID"
    assert [violation.field for violation in refused.value.violations] == ["secret_keys[1]"]
    assert "AbC" not in refused.value.message


@pytest.mark.parametrize("text", ["", "own vendor contract", "\u20ac " * 250, "emoji \U0001f600"])
def test_a_reason_may_be_any_line(text: str) -> None:
    assert validation.reason(text) == text


@pytest.mark.parametrize(
    "text",
    ["x" * 501, "two\nlines", "tab\t", "nul\x00", "bell\x07", "escape\x1b[31m", "c1 \x85", "line\u2028separator"],
)
def test_a_reason_is_one_line_of_at_most_500_code_points(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        validation.reason(text)

    assert refused.value.reason == "TEXT_INVALID"
    assert refused.value.violations[0].field == "reason"


@given(text=st.text().filter(lambda text: text != ID))
def test_a_refusal_repeats_at_most_64_characters_and_none_that_a_terminal_obeys(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        validation.workspace_id(text)

    assert len(refused.value.message) < 64 + 100
    assert refused.value.message.isprintable()
