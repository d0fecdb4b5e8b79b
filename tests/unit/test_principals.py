"""Who is known by what: the file's rules, tokens and the names in certificates."""

import hashlib
import hmac
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_grpc.errors import SettingsError
from billing_grpc.model import Principal, Role
from billing_grpc.server.auth import principals as credentials
from billing_grpc.server.auth.principals import Principals, bearer_token, is_name, token_digest

DIGEST = token_digest("first")
OTHER = token_digest("second")

FILE = f"""
[[principal]]
name = "controlplane"
role = "admin"
token_sha256 = ["{DIGEST}", "{OTHER}"]
certificate_uri = ["spiffe://example/controlplane"]
certificate_dns = ["ControlPlane.internal"]

[[principal]]
name = "dashboard"
role = "reader"
certificate_dns = ["dashboard.internal"]
"""
CONTROL_PLANE = Principal("controlplane", Role.ADMIN)
DASHBOARD = Principal("dashboard", Role.READER)


def test_a_digest_is_the_sha_256_of_the_token() -> None:
    assert token_digest("first") == hashlib.sha256(b"first").hexdigest()


@pytest.mark.parametrize(("token", "expected"), [("first", CONTROL_PLANE), ("second", CONTROL_PLANE), ("third", None)])
def test_each_live_token_of_a_name_is_that_principal(token: str, expected: Principal | None) -> None:
    assert Principals.parse(FILE).by_token(token) == expected


@pytest.mark.parametrize(
    ("uris", "names", "expected"),
    [
        (["spiffe://example/controlplane"], [], CONTROL_PLANE),
        ([], ["controlplane.INTERNAL"], CONTROL_PLANE),
        (["spiffe://example/controlplane"], ["controlplane.internal"], CONTROL_PLANE),
        ([], ["dashboard.internal", "unknown.internal"], DASHBOARD),
        (["spiffe://example/Controlplane"], [], None),
        ([], ["unknown.internal"], None),
        (["spiffe://example/controlplane"], ["dashboard.internal"], None),
        (["dashboard.internal"], ["spiffe://example/controlplane"], None),
        ([], [], None),
    ],
    ids=[
        "URI",
        "DNS in any case",
        "both",
        "one known",
        "URI in another case",
        "unknown",
        "two principals",
        "swapped",
        "none",
    ],
)
def test_a_certificate_is_the_one_principal_it_names(
    uris: list[str], names: list[str], expected: Principal | None
) -> None:
    assert Principals.parse(FILE).by_certificate(uris, names) == expected


HEADERS: dict[str, tuple[str | bytes, str | None]] = {
    "as it should be": ("Bearer abc", "abc"),
    "scheme in another case": ("bEARER abc", "abc"),
    "another scheme": ("Basic abc", None),
    "no scheme": ("abc", None),
    "no token": ("Bearer ", None),
    "only the scheme": ("Bearer", None),
    "two spaces": ("Bearer  abc", None),
    "two tokens": ("Bearer abc def", None),
    "trailing space": ("Bearer abc ", None),
    "control character": ("Bearer a\x00", None),
    "not ASCII": ("Bearer \u00e9", None),
    "bytes": (b"Bearer \xff", None),
    "too long": ("Bearer " + "x" * 4097, None),
    "empty": ("", None),
}


@pytest.mark.parametrize(("header", "token"), HEADERS.values(), ids=HEADERS)
def test_a_header_holds_one_bearer_token_or_none(header: str | bytes, token: str | None) -> None:
    assert bearer_token(header) == token


@given(text=st.text())
def test_no_text_is_let_in_by_accident(text: str) -> None:
    principals = Principals.parse(FILE)

    assert (principals.by_token(text) is not None) == (text in {"first", "second"})


BROKEN: dict[str, tuple[str, str]] = {
    "not TOML": ("[[principal", "not TOML"),
    "not TOML at a place": ('a = "b\n', "not TOML (at line 1, column 7)"),
    "not TOML at the end": ("a =", "not TOML (at "),
    "a number of 5000 digits": ("a = " + "1" * 5000, "not TOML"),
    "empty": ("", "one or more"),
    "something else": ("[server]\nport = 1", "one or more"),
    "beside something else": (FILE + "[server]\nport = 1", "and nothing else"),
    "an empty list": ("principal = []", "one or more"),
    "a list of no tables": ('principal = ["x"]', "principal 1: must be a table"),
    "no list of tables": ('principal = "x"', "one or more"),
    "no name": ('[[principal]]\nrole = "admin"', "name must be"),
    "a name with a space": ('[[principal]]\nname = "a b"\nrole = "admin"', "name must be"),
    "the name of local admin": ('[[principal]]\nname = "local"\nrole = "admin"', "not 'local'"),
    "a name twice": (FILE + '[[principal]]\nname = "dashboard"\nrole = "admin"', "principal 3: name must be"),
    "no role": ('[[principal]]\nname = "a"', "reader, provisioner, admin"),
    "a role of capitals": ('[[principal]]\nname = "a"\nrole = "Admin"', "reader, provisioner, admin"),
    "a role that is no text": ('[[principal]]\nname = "a"\nrole = ["admin"]', "reader, provisioner, admin"),
    "a mistyped key": (
        '[[principal]]\nname = "a"\nrole = "admin"\ntoken_sha265 = []',
        "1 unknown key; known are name, role, token_sha256",
    ),
    "digests that are no list": (
        f'[[principal]]\nname = "a"\nrole = "admin"\ntoken_sha256 = "{DIGEST}"',
        "must be a list",
    ),
    "a number for a name": (
        '[[principal]]\nname = "a"\nrole = "admin"\ncertificate_uri = [1]',
        "must be a list of texts",
    ),
    "an empty name": ('[[principal]]\nname = "a"\nrole = "admin"\ncertificate_dns = [""]', "must be a list of texts"),
    "a digest of capitals": (
        f'[[principal]]\nname = "a"\nrole = "admin"\ntoken_sha256 = ["{DIGEST.upper()}"]',
        "64 hexadecimal",
    ),
    "a token of another": (
        FILE + f'[[principal]]\nname = "b"\nrole = "reader"\ntoken_sha256 = ["{OTHER}"]',
        "token_sha256 number 1 belongs to principal 1 already",
    ),
    "a certificate of another": (
        FILE + '[[principal]]\nname = "b"\nrole = "reader"\ncertificate_dns = ["DASHBOARD.internal"]',
        "certificate_dns number 1 belongs to principal 2 already",
    ),
}


@pytest.mark.parametrize(("text", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_its_reason(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Principals.parse(text)

    assert says in str(refused.value)


MISPLACED: dict[str, str] = {
    "as a digest": '[[principal]]\nname = "a"\nrole = "admin"\ntoken_sha256 = ["TOKEN"]',
    "as a key": '[[principal]]\nname = "a"\nrole = "admin"\nTOKEN = 1',
    "as a key of the file": "TOKEN = 1",
    "as an inline key twice": "a = {TOKEN = 1, TOKEN = 2}",
    "as a table twice": "[TOKEN]\n[TOKEN]",
    "as a role": '[[principal]]\nname = "a"\nrole = "TOKEN"',
    "as a name": '[[principal]]\nname = "TOKEN"\nrole = "king"',
    "as a name, before lists": '[[principal]]\nname = "TOKEN"\nrole = "admin"\ntoken_sha256 = ["x"]\ncertificate_uri = 1',
    "as a name that is taken": '[[principal]]\nname = "TOKEN"\nrole = "admin"\n' * 2,
    "as a name with another's digest": f'[[principal]]\nname = "TOKEN"\nrole = "admin"\ntoken_sha256 = ["{DIGEST}"]\n'
    f'[[principal]]\nname = "b"\nrole = "admin"\ntoken_sha256 = ["{DIGEST}"]',
    "bare": "TOKEN",
}


@pytest.mark.parametrize("text", MISPLACED.values(), ids=MISPLACED)
def test_a_token_put_in_the_wrong_place_is_not_repeated(text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Principals.parse(text.replace("TOKEN", "bgrpc_the-token-itself"))

    assert "the-token-itself" not in str(refused.value)


@pytest.mark.parametrize("token", ["first", "second", "third", "unknown"])
def test_every_digest_is_compared_in_constant_time_wherever_the_match_is(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = f'[[principal]]\nname = "last"\nrole = "reader"\ntoken_sha256 = ["{token_digest("third")}"]'
    principals = Principals.parse(FILE + third)
    compared: list[tuple[str, str]] = []

    def compare(left: str, right: str) -> bool:
        compared.append((left, right))
        return hmac.compare_digest(left, right)

    monkeypatch.setattr(credentials, "hmac", SimpleNamespace(compare_digest=compare))
    principals.by_token(token)

    assert compared == [(known, token_digest(token)) for known in principals.by_digest]
    assert len(compared) == 3


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("a", True),
        ("spiffe@x/y.z_1-2", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        ("-a", False),
        ("a\n", False),
        ('a"', False),
        ("\u00e9", False),
        ("local", False),
    ],
)
def test_a_name_is_a_plain_word(name: str, may: bool) -> None:
    assert is_name(name) == may


def test_all_problems_of_a_file_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        Principals.parse('[[principal]]\nname = "a"\nrole = "x"\n[[principal]]\nname = "?"\nrole = "admin"\nkey = 1')

    assert len(refused.value.problems) == 3
