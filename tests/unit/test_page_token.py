"""Page tokens: opaque, bound to their list, and refused when they are not ours."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_grpc import page_token
from billing_grpc.errors import InvalidArgument

WORKSPACE = "7f1fc6a0-0000-4000-8000-000000000001"


@given(position=st.integers(0, 2**63 - 1), workspace=st.sampled_from(["", WORKSPACE]))
def test_a_token_says_what_was_put_into_it(position: int, workspace: str) -> None:
    assert page_token.decode(page_token.encode(workspace, position), workspace) == position


@pytest.mark.parametrize(
    ("made_for", "used_for"), [("", WORKSPACE), (WORKSPACE, ""), (WORKSPACE, WORKSPACE[:-1] + "2")]
)
def test_a_token_of_another_list_is_refused(made_for: str, used_for: str) -> None:
    with pytest.raises(InvalidArgument, match="something else") as refused:
        page_token.decode(page_token.encode(made_for, 7), used_for)

    assert refused.value.reason == "PAGE_TOKEN_INVALID"


@given(text=st.text())
def test_a_text_that_we_did_not_make_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        page_token.decode(text, "")


@given(position=st.integers(0, 10**6), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_token_with_one_bit_changed_is_refused(position: int, place: int, bit: int) -> None:
    token = page_token.encode("", position)
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    raw[place % len(raw)] ^= 1 << bit

    with pytest.raises(InvalidArgument):
        page_token.decode(base64.urlsafe_b64encode(raw).decode().rstrip("="), "")
