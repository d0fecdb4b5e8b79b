"""Page tokens: opaque, bound to their list, and refused when they are not ours."""

import base64
import hashlib
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_grpc import page_token
from billing_grpc.errors import InvalidArgument
from billing_grpc.page_token import LogPosition

WORKSPACE = "7f1fc6a0-0000-4000-8000-000000000001"


@given(position=st.integers(1, 2**63 - 1), workspace=st.sampled_from(["", WORKSPACE]))
def test_a_token_says_what_was_put_into_it(position: int, workspace: str) -> None:
    assert page_token.log_position(page_token.encode(workspace, LogPosition(position)), workspace) == LogPosition(
        position
    )


@pytest.mark.parametrize(
    ("made_for", "used_for"), [("", WORKSPACE), (WORKSPACE, ""), (WORKSPACE, WORKSPACE[:-1] + "2")]
)
def test_a_token_of_another_list_is_refused(made_for: str, used_for: str) -> None:
    with pytest.raises(InvalidArgument, match="another list") as refused:
        page_token.log_position(page_token.encode(made_for, LogPosition(7)), used_for)

    assert refused.value.reason == "PAGE_TOKEN_INVALID"


@given(key=st.uuids())
def test_a_token_of_a_list_of_workspaces_says_the_workspace(key: uuid.UUID) -> None:
    of = page_token.list_name("workspaces", None)

    assert page_token.workspace(page_token.encode(of, key), of) == str(key)


def test_a_token_of_one_kind_of_list_is_refused_by_the_other() -> None:
    for token, read in (
        (page_token.encode("", LogPosition(7)), page_token.workspace),
        (page_token.encode("", WORKSPACE), page_token.log_position),
    ):
        with pytest.raises(InvalidArgument):
            read(token, "")


@given(text=st.text())
def test_a_text_that_we_did_not_make_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        page_token.log_position(text, "")


@given(position=st.integers(0, 10**6), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_token_with_one_bit_changed_is_refused(position: int, place: int, bit: int) -> None:
    token = page_token.encode("", LogPosition(position))
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    raw[place % len(raw)] ^= 1 << bit

    with pytest.raises(InvalidArgument):
        page_token.log_position(base64.urlsafe_b64encode(raw).decode().rstrip("="), "")


@pytest.mark.parametrize("spelt", [lambda token: token + "=", lambda token: token + "==", lambda token: " " + token])
def test_another_spelling_of_a_token_is_refused(spelt: Callable[[str], str]) -> None:
    with pytest.raises(InvalidArgument):
        page_token.log_position(spelt(page_token.encode("", LogPosition(7))), "")


def test_a_token_of_another_version_or_with_an_odd_number_is_refused() -> None:
    for payload in (b"2||7", b"1||+7", b"1||0_7", b"1||-7", b"1||7|", b"1||" + b"9" * 30, "1||\u0667".encode()):
        check = hashlib.sha256(b"billing_grpc page token" + payload).digest()[:8]
        token = base64.urlsafe_b64encode(check + payload).decode().rstrip("=")
        with pytest.raises(InvalidArgument):
            page_token.log_position(token, "")
