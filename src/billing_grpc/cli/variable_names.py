"""Find the names of variables in what `env`, dotenv files and Kubernetes manifests hold. Pure; it returns no value."""

import codecs
import re
from collections.abc import Iterator
from typing import Final

from billing_grpc.secret_keys import names_in

_MAX_HEAD: Final = 300
"""The name of a variable, with what stands before it, is not longer; a longer line is a value."""

_LINES: Final = re.compile(r"[\r\n\0]+")
_COMMENT: Final = re.compile(r"\s*(#|//)")
# In `- name: KEY`, `{name: KEY, value: x}`, `key: KEY` and `"name": "KEY"` the name is what others call a value.
_NAMED: Final = re.compile(r"""(?:^|[\s{,-])["']?(?:name|key)["']?\s*:\s*["']?([A-Za-z0-9_][A-Za-z0-9_.-]*)""")
_QUOTED: Final = re.compile(r"""["']([A-Za-z0-9_][A-Za-z0-9_.-]*)["']\s*:""")
_VALUE: Final = re.compile(r"[=:]")
_ASSIGNED_BY_SPACE: Final = re.compile(r"\s*(?:setenv|ENV|ARG)\s+([A-Za-z0-9_][A-Za-z0-9_.-]*)\s")


def names_of_text(given: bytes) -> set[str]:
    """Return every name, in upper case, under which this text may set a variable.

    It reads lines or entries that end with a NUL: `NAME=value` (also after `export`, in quotes, behind a byte order mark),
    names alone, and YAML and JSON, where a name is a key or stands under `name` or `key`. Lines of comments are left out. A
    line of a value of several lines may look like a name, so the result may hold words that are none.
    """
    encoding = "utf-16" if given.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = given.decode(encoding, "replace")
    return {name for line in _LINES.split(text) if not _COMMENT.match(line) for name in _names_of_line(line)}


def _names_of_line(line: str) -> Iterator[str]:
    for found in (_NAMED, _QUOTED):
        yield from (name.upper() for name in found.findall(line))
    if assigned := _ASSIGNED_BY_SPACE.match(line):
        yield assigned[1].upper()
    head = _VALUE.split(line, maxsplit=1)[0]
    if len(head) <= _MAX_HEAD:
        yield from (name for word in head.split() for name in names_in(word))
