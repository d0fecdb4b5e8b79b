"""The vendor keys that are blocked, and the verdict on writing a secret under a key name. Pure."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from billing_grpc.catalogue import RESERVED_PREFIX, NameSet, digest, load
from billing_grpc.errors import quoted
from billing_grpc.model import OPEN_MODES, Catalogue, Resolution, SecretKeyVerdict, SecretVerdict

MAX_KEY_LENGTH: Final = 256
MAX_SENT_BYTES: Final = 512
"""A client does not send a longer key: it is mostly white space. So a call with the most keys stays under 4 MiB."""

_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_]+")
_RUNS: Final = re.compile(r"[A-Za-z0-9_.-]+")
_DROPPED: Final = bytes(code for code in range(128) if not _RUNS.fullmatch(chr(code)))
_EDGES: Final = ".-"
"""Valid in a name; at its ends, some programs drop them."""

LOOK_ALIKES: Final[Mapping[str, str]] = {
    like[0]: like[1:]
    for like in (
        *("A\u00c6", "D\u00d0\u0110\u0189", "E\u2107", "F\u03a6\u0191", "G\u01e4\u0393", "H\u0126", "I\u0197"),
        *("L\u0141\u00a3\u221f\u2514\u2558\u2559\u255a", "O\u00d8\u019f\u03a9\u0152\u263a\u263b", "P\u20a7\u2118"),
        *("R\u00ae", "S\u03a3", "T\u00de\u0166\u01ae\u0398\u252c\u2564\u2565\u2566", "Y\u00a5"),
        *("a\u03b1\u00e6", "b\u0180", "c\u00a2\u00a9", "d\u0111\u03b4\u266a\u266b", "e\u00f0\u03b5\u212e"),
        *("f\u03c6\u0192", "g\u01e5\u0261", "h\u0127\u04bb", "i\u0131", "l\u0142\u019a", "n\u2229", "o\u00f8\u0153"),
        *("p\u03c0", "s\u00df\u03c3", "t\u00fe\u0167\u01ab\u03c4", "v\u221a\u2193", "z\u01b6"),
        *("0\u0660\u25cb\u25d9\u263c", "1\u0661\u00bc\u00bd", "2\u0662", "3\u0663\u00be", "4\u0664", "5\u0665"),
        *("6\u0666", "7\u0667", "8\u0668\u221e", "9\u0669", "_\u02cd\u0331\u0332\u2584", "-\u2010\u2011\u2212"),
    )
}
"""What Windows replaces with each ASCII character in one of its code pages, and Unicode does not decompose into it.

The source is unicode.org's WindowsBestFit. If two code pages replace a character differently, the table has one of the two:
`e` for U+00F0, which is `e` on Chinese and `d` on Japanese Windows. Box drawings that become `-` are left out, because no
listed name has a `-`.
`make generate` copies the table into `conformance/blocked_keys.json`, where clients in other languages read it.
"""

_TO_ASCII: Final = {ord(other): like for like, others in LOOK_ALIKES.items() for other in others}
_LIKE_ASCII: Final = re.compile(f"[{''.join(map(chr, _TO_ASCII))}]")


def normalise(key: str) -> str | None:
    """Return the key trimmed and upper-cased; None if it is not a valid key name.

    The pattern is checked before the case is changed, because upper-casing maps some other letters to ASCII ones.
    """
    trimmed = key.strip()
    if len(trimmed) > MAX_KEY_LENGTH or not _KEY.fullmatch(trimmed):
        return None
    return trimmed.upper()


def can_be_sent(key: str) -> bool:
    """Return whether a client may send this key: a valid key name of at most `MAX_SENT_BYTES` bytes."""
    return normalise(key) is not None and len(key.encode()) <= MAX_SENT_BYTES


def names_in(variable: str) -> set[str]:
    """Return every key name, in upper case, that a program could read from this variable's name.

    Shells, `exec` functions and loaders of environment files split a name at characters that are invalid in names, or drop
    them: a byte order mark, quotes, spaces, `=`. Some also drop the word `export`. So the result holds each run of valid
    characters, and all runs joined. Windows gives a program of an older code page the nearest ASCII letter, and some
    programs upper-case names there, so a name in other letters is also read as `_nearest_ascii` does.
    """
    if _PLAIN.fullmatch(variable):
        return {variable.upper()}
    found: set[str] = set()
    for spelling in (variable,) if variable.isascii() else (variable, _nearest_ascii(variable)):
        runs = _RUNS.findall(spelling)
        # One call for all runs: a name can have hundreds.
        found.update("\n".join((*runs, "".join(runs))).upper().split("\n"))
    # A key name begins or ends with these two characters only if the configuration lists it so.
    return found | {each.strip(_EDGES) for each in found}


def _nearest_ascii(text: str) -> str:
    """Return the text with full-width, accented and similar letters as the ASCII letters that Windows replaces them with."""
    if _LIKE_ASCII.search(text):
        text = text.translate(_TO_ASCII)
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def is_reserved(name: str) -> bool:
    """Return whether a normalised name is reserved for the platform."""
    return name.startswith(RESERVED_PREFIX)


class NameFinder:
    """Say whether a variable's name contains one of these names, as `names_in` reads it, without building that set.

    A request has thousands of variables, and a hostile one's names have hundreds of runs each.

    Args:
        names: normalised names.
    """

    def __init__(self, names: AbstractSet[str]) -> None:
        self._names = names
        self._runs = re.compile(f"[A-Za-z0-9_.-]{{{min(map(len, names), default=1)},}}")

    def holds(self, variable: str) -> bool:
        """Return whether a program could read one of the names from this environment variable's name."""
        if _PLAIN.fullmatch(variable):
            return variable.upper() in self._names
        if self._holds_as_spelt(variable):
            return True
        return not variable.isascii() and self._holds_as_spelt(_nearest_ascii(variable))

    def _holds_as_spelt(self, text: str) -> bool:
        joined = text.encode("ascii", "ignore").translate(None, _DROPPED).decode()
        found = [each.upper() for each in (*self._runs.findall(text), joined)]
        return not self._names.isdisjoint(found) or not self._names.isdisjoint(each.strip(_EDGES) for each in found)


class KeyList:
    """The vendor keys that are blocked and stripped while a workspace is `platform_managed`.

    Args:
        extra: names that configuration adds, already normalised. A reserved name is ignored, because it is refused in every
            mode.
        name_set: the set of the catalogue. Configuration cannot take a name out of it.

    Attributes:
        names: all keys, normalised.
        catalogue: identifies them.
    """

    def __init__(self, extra: Iterable[str] = (), *, name_set: NameSet = NameSet.AGENTS) -> None:
        self.names = load().names(name_set) | {name for name in extra if not is_reserved(name)}
        self._finder = NameFinder(self.names)
        self.catalogue = Catalogue(name_set.value, load().version, digest(self.names))

    def needs_mode(self, name: str) -> bool:
        """Return whether the verdict on this normalised name depends on the workspace's mode."""
        return name in self.names or name.strip(_EDGES) in self.names

    def holds(self, variable: str) -> bool:
        """Return whether a program could read a vendor key from this environment variable's name."""
        return self._finder.holds(variable)

    def judge(self, key: str, name: str, resolution: Resolution | None, *, org_wide: bool) -> SecretKeyVerdict:
        """Return the verdict on one key.

        Args:
            key: as the caller sent it.
            name: the key, normalised.
            resolution: the resolution that decides; may be None only if no key `needs_mode`.
            org_wide: whether the secret is for the whole organisation.

        Returns:
            The verdict; a vendor key is allowed only if the resolved mode is `byok` or `disabled`.
        """
        if is_reserved(name):
            message = (
                f"{quoted(name)} is reserved for the platform in every mode: choose a name without {RESERVED_PREFIX}"
            )
            return SecretKeyVerdict(key, SecretVerdict.BLOCKED_RESERVED, message)
        if not self.needs_mode(name):
            return SecretKeyVerdict(key, SecretVerdict.ALLOWED, "not a vendor key: allowed in every mode")
        if resolution is not None and resolution.mode in OPEN_MODES:
            return SecretKeyVerdict(key, SecretVerdict.ALLOWED, f"allowed: the billing mode is {resolution.mode}")
        remedy = _remedy(resolution, org_wide=org_wide)
        return SecretKeyVerdict(key, SecretVerdict.BLOCKED_PLATFORM_MANAGED, f"{quoted(name)} is blocked: {remedy}")


def _remedy(resolution: Resolution | None, *, org_wide: bool) -> str:
    if resolution is None or resolution.error is not None:
        return "the billing mode could not be read, and is taken as platform_managed for safety; retry"
    if org_wide:
        return (
            "the organisation's default billing mode is platform_managed; use the platform's proxy, or store the key in a"
            " workspace that is set to byok"
        )
    workspace = resolution.workspace_id or "WORKSPACE_ID"
    first = "" if resolution.workspace_id else "create the workspace, then "
    return (
        "the billing mode is platform_managed; use the platform's proxy, or "
        f"{first}set this workspace to byok: billing-grpc set {workspace} byok"
        " (SetWorkspaceBillingMode, mode BILLING_MODE_BYOK)"
    )
