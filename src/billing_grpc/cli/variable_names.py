"""Find the names of variables in what `env`, dotenv files and Kubernetes manifests hold. Pure; it returns no value."""

import codecs
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from billing_grpc.secret_keys import names_in

_MAX_HEAD: Final = 300
"""The name of a variable, with what stands before it, is not longer; a longer line is a value."""

_LINES: Final = re.compile(r"[\r\n\0]+")
_COMMENT: Final = re.compile(r"\s*(#|//)")
# In `- name: KEY`, `{name: KEY, value: x}`, `key: KEY` and `"name": "KEY"` the name is what others call a value. It may have
# a tag or an anchor.
_NAMED: Final = re.compile(
    r"""(?:^|[\s{,-])["']?(?:name|key)["']?\s*:\s*(?:[!&]\S*\s+)*["']?([A-Za-z0-9_][A-Za-z0-9_.-]*)"""
)
_QUOTED: Final = re.compile(r"""["']([A-Za-z0-9_][A-Za-z0-9_.-]*)["']\s*:""")
_IN_MAPPING: Final = re.compile(r"[{,]\s*([A-Za-z0-9_][A-Za-z0-9_.-]*)\s*:\s")
# Kubernetes puts this before every name of a Secret or a ConfigMap.
_PREFIX: Final = re.compile(r"""(?:^|[\s{,-])["']?prefix["']?\s*:\s*["']?([A-Za-z0-9_.-]+)""")
_ASSIGNMENT: Final = re.compile(r"""\s*(?:[A-Za-z]+\s+)?(?:-\w+\s+)?["']?[A-Za-z0-9_][A-Za-z0-9_.-]*["']?\s*=""")
_VALUE: Final = re.compile(r"[=:]")
_ASSIGNED_BY_SPACE: Final = re.compile(r"\s*(?:setenv|ENV|ARG)\s+([A-Za-z0-9_][A-Za-z0-9_.-]*)\s")


class Names(NamedTuple):
    """The names in a text, in upper case.

    Attributes:
        written: as they are written.
        prefixed: the same, each behind each `prefix` of an `envFrom` in the text. Not all of them become variables.
    """

    written: set[str]
    prefixed: set[str]


def names_of_text(given: bytes) -> Names:
    """Return every name, in upper case, under which this text may set a variable.

    It reads lines or entries that end with a NUL: `NAME=value` (also after `export`, in quotes, behind a byte order mark),
    names alone, and YAML and JSON, where a name is a key or stands under `name` or `key`. Lines of comments are left out. A
    line of a value of several lines may look like a name, so the result may hold words that are none.
    """
    encoding = "utf-16" if given.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = given.decode(encoding, "replace")
    lines = [line for line in _LINES.split(text) if not _COMMENT.match(line)]
    names = {name for line in lines for name in _names_of_line(line)}
    prefixes = {prefix.upper() for line in lines if not _ASSIGNMENT.match(line) for prefix in _PREFIX.findall(line)}
    return Names(names, {prefix + name for prefix in prefixes for name in names})


def _names_of_line(line: str) -> Iterator[str]:
    if assigned := _ASSIGNED_BY_SPACE.match(line):
        yield assigned[1].upper()
        return
    if not _ASSIGNMENT.match(line):
        for found in (_NAMED, _QUOTED, _IN_MAPPING):
            yield from (name.upper() for name in found.findall(line))
    head = _VALUE.split(line, maxsplit=1)[0]
    if len(head) <= _MAX_HEAD:
        yield from (name for word in head.split() for name in names_in(word))
