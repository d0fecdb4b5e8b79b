"""The known principals, with the digests of their tokens and the names in their certificates.

Pure. The text is TOML:

    [[principal]]
    name = "controlplane"
    role = "admin"                                       # reader, provisioner or admin
    token_sha256 = ["<64 hexadecimal digits>", "..."]    # several, so that tokens rotate without a gap
    certificate_uri = ["spiffe://example/controlplane"]  # SANs of client certificates
    certificate_dns = ["controlplane.internal"]
"""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

from billing_grpc.errors import SettingsError
from billing_grpc.model import Principal, Role

LOCAL: Final = Principal("local", Role.ADMIN)
"""The principal of every caller of a server under local admin."""

MAX_TOKEN_LENGTH: Final = 4096
NAME_RULE: Final = f"at most 64 letters, digits and . _ @ / -, a letter or digit first, and not {LOCAL.name!r}"
"""The rule of a principal's name."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,63}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_WHERE: Final = re.compile(r"\(at (?:line \d+, column \d+|end of document)\)\Z")
_LISTS: Final = ("token_sha256", "certificate_uri", "certificate_dns")
_KEYS: Final = ("name", "role", *_LISTS)
_BEARER: Final = "bearer"


def token_digest(token: str) -> str:
    """Return the SHA-256 of a token in hexadecimal, the only form in which a token is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


def bearer_token(header: str | bytes) -> str | None:
    """Return the token of an `authorization` header; `None` if the header is malformed."""
    if not isinstance(header, str):
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != _BEARER or len(token) > MAX_TOKEN_LENGTH or not _TOKEN.fullmatch(token):
        return None
    return token


def is_name(text: str) -> bool:
    """Return whether this text may be a principal's name."""
    return _NAME.fullmatch(text) is not None and text != LOCAL.name


@dataclass(frozen=True, slots=True)
class Principals:
    """The set of known principals, by token digest and by certificate name.

    Attributes:
        by_digest: the principal of each token digest.
        by_uri: the principal of each URI in a certificate.
        by_dns: the principal of each DNS name in a certificate, in lower case.
    """

    by_digest: dict[str, Principal]
    by_uri: dict[str, Principal]
    by_dns: dict[str, Principal]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the principals of a TOML text.

        Raises:
            SettingsError: the text is wrong; names every problem and repeats no value that could be a token.
        """
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            # The parser's message may repeat the text; a number of too many digits raises a plain ValueError.
            where = _WHERE.search(str(error))
            raise SettingsError([f"not TOML {where[0]}" if where else "not TOML"]) from error
        problems: list[str] = []
        found = cls({}, {}, {})
        entries = document.get("principal", [])
        if set(document) != {"principal"} or not isinstance(entries, list) or not entries:
            problems.append("expected one or more [[principal]] tables and nothing else")
            entries = []
        names: dict[str, int] = {}
        for number, entry in enumerate(entries, 1):
            problems.extend(f"principal {number}: {problem}" for problem in found._add(number, entry, names))
        if problems:
            raise SettingsError(problems)
        return found

    def by_token(self, token: str) -> Principal | None:
        """Return the principal of a token, or `None`; takes the same time for every token."""
        digest = token_digest(token)
        found: Principal | None = None
        for known, principal in self.by_digest.items():
            if hmac.compare_digest(known, digest):
                found = principal
        return found

    def by_certificate(self, uris: Collection[str], dns_names: Collection[str]) -> Principal | None:
        """Return the principal of a verified certificate's names; `None` if they name no principal or more than one."""
        named = {self.by_uri[uri] for uri in uris if uri in self.by_uri}
        named |= {self.by_dns[name.lower()] for name in dns_names if name.lower() in self.by_dns}
        return named.pop() if len(named) == 1 else None

    def _add(self, number: int, entry: object, names: dict[str, int]) -> Iterator[str]:
        """Add the principal of one table; yield its problems without its text, any of which may be a token."""
        if not isinstance(entry, dict):
            yield "must be a table"
            return
        if unknown := len(set(entry) - set(_KEYS)):
            yield f"{unknown} unknown key{'s' if unknown > 1 else ''}; known are {', '.join(_KEYS)}"
        name, role = entry.get("name"), entry.get("role")
        if not isinstance(name, str) or not is_name(name) or name in names:
            yield f"name must be {NAME_RULE}, and not taken twice"
            return
        names[name] = number
        if role not in list(Role):
            yield f"role must be one of {', '.join(Role)}"
            return
        principal = Principal(name, Role(str(role)))
        for key, store in zip(_LISTS, (self.by_digest, self.by_uri, self.by_dns), strict=True):
            for problem in _fill(store, entry.get(key, []), principal, key, names):
                yield f"{key} {problem}"


def _fill(
    store: dict[str, Principal], values: Any, principal: Principal, key: str, names: dict[str, int]
) -> Iterator[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        yield "must be a list of texts"
        return
    for number, given in enumerate(values, 1):
        value = given.lower() if key == "certificate_dns" else given
        if key == "token_sha256" and not _DIGEST.fullmatch(value):
            # The value is not repeated: it may be the token itself, put there by mistake.
            yield f"number {number} must be the token's SHA-256 in 64 hexadecimal digits, in lower case"
        elif store.setdefault(value, principal) is not principal:
            yield f"number {number} belongs to principal {names[store[value].name]} already"
