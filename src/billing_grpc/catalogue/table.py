"""Read the catalogue's file, check it, and look names up in it."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Final

from billing_grpc.catalogue.programs import PROGRAMS
from billing_grpc.errors import CatalogueError

GENERAL: Final = "general"
"""In place of a set: no set blocks the name."""

RESERVED_PREFIX: Final = "MOLECULE_LLM_"
"""The prefix of the names that are reserved for the platform in every mode; the catalogue cannot hold one."""

_FILE: Final = "names.tsv"
_HEADINGS: Final = ("name", "kind", "vendor", "set", "read_by", "why")
_VERSION: Final = re.compile(r"version\t(\d{4}-\d{2}-\d{2})")
_NAME: Final = re.compile(r"[A-Z0-9_][A-Z0-9_.-]{0,255}")
_ABSENT: Final = "-"
_DIGEST_CHARACTERS: Final = 12


class Kind(StrEnum):
    """What a program does with the variable."""

    CREDENTIAL = "credential"
    ADDRESS = "address"
    ROUTE = "route"


class NameSet(StrEnum):
    """A set of names to block. Each set holds the ones before it."""

    CORE = "core"
    AGENTS = "agents"
    VENDORS = "vendors"


_KINDS: Final = {each.value: each for each in Kind}
_SETS: Final = {each.value: each for each in NameSet}
_VENDORS: Final = NameSet.VENDORS.value
_EMPTY: Final = frozenset({"", _ABSENT})
_IN_WORKSPACES: Final = frozenset(each for each, program in PROGRAMS.items() if program.in_workspaces)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name.

    Attributes:
        name: the variable's name, in upper case.
        kind: what a program does with it.
        vendor: whose it is.
        name_set: the smallest set that blocks it; None if no set does.
        read_by: the programs and libraries that read it, as keys of `PROGRAMS`.
        why: why no set blocks it; empty if one does.
    """

    name: str
    kind: Kind
    vendor: str
    name_set: NameSet | None
    read_by: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Table:
    """The whole catalogue.

    Attributes:
        version: the date of its last change, as in 2026-11-26.
        entries: every entry by its name, sorted.
    """

    version: str
    entries: Mapping[str, Entry]

    def names(self, name_set: NameSet) -> frozenset[str]:
        """Return the names that a set blocks."""
        held = list(NameSet)[: list(NameSet).index(name_set) + 1]
        return frozenset(name for name, each in self.entries.items() if each.name_set in held)


@cache
def load() -> Table:
    """Return the catalogue of this release, read once.

    Raises:
        CatalogueError: its file is wrong; names every problem.
    """
    return parse(Path(__file__).with_name(_FILE).read_text(encoding="utf-8"))


def parse(text: str) -> Table:
    """Return the table that a text in the format of `names.tsv` holds.

    Raises:
        CatalogueError: it is wrong; names every problem.
    """
    lines = [line for line in text.split("\n") if line and not line.startswith("#")]
    version = _VERSION.fullmatch(lines[0]) if lines else None
    if version is None or "\t".join(_HEADINGS) not in lines[1:2]:
        raise CatalogueError([f"it must begin with a version (a date) and the headings {', '.join(_HEADINGS)}"])
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for line in lines[2:]:
        cells = line.split("\t")
        if wrong := _problems(cells):
            problems += [f"{cells[0]}: {each}" for each in wrong]
            continue
        entry = _entry(*cells)
        before = entries.setdefault(entry.name, entry)
        if before is not entry:
            claims = " and ".join(f"{each.vendor} as {each.kind}" for each in (before, entry))
            problems.append(f"{entry.name}: it is listed twice, by {claims}; keep one line")
    problems += _unsorted(list(entries))
    if problems:
        raise CatalogueError(problems)
    return Table(version[1], MappingProxyType(entries))


def digest(names: Collection[str]) -> str:
    """Return twelve hexadecimal digits that identify a set of names, whatever their order."""
    return sha256("\n".join(sorted(names)).encode()).hexdigest()[:_DIGEST_CHARACTERS]


def _entry(name: str, kind: str, vendor: str, name_set: str, read_by: str, why: str) -> Entry:
    held = _SETS.get(name_set)
    return Entry(name, _KINDS[kind], vendor, held, _readers(read_by), "" if why == _ABSENT else why)


@cache
def _readers(cell: str) -> tuple[str, ...]:
    return () if cell == _ABSENT else tuple(cell.split(","))


def _problems(cells: Sequence[str]) -> list[str]:
    """Return what is wrong with one line."""
    if len(cells) != len(_HEADINGS):
        return [f"it needs {len(_HEADINGS)} columns, with tabs between them"]
    name, kind, vendor, name_set, read_by, why = cells
    problems = list(_problems_of_readers(read_by, in_vendors=name_set == _VENDORS))
    if not _NAME.fullmatch(name):
        problems.append("not a key's name in upper case")
    if name.startswith(RESERVED_PREFIX):
        problems.append(f"{RESERVED_PREFIX}* is refused in every mode already; leave it out")
    if kind not in _KINDS:
        problems.append(f"{kind} is no kind; use {', '.join(_KINDS)}")
    if name_set not in _SETS and name_set != GENERAL:
        problems.append(f"{name_set} is no set; use {', '.join(_SETS)} or {GENERAL}")
    if vendor in _EMPTY:
        problems.append("it needs a vendor")
    if (name_set == GENERAL) == (why in _EMPTY):
        problems.append(f"a name needs a reason if, and only if, its set is {GENERAL}")
    return problems


@cache
def _problems_of_readers(cell: str, *, in_vendors: bool) -> tuple[str, ...]:
    readers = _readers(cell)
    found = {
        f"{cell}: not all of them are programs of catalogue/programs.py": not PROGRAMS.keys() >= set(readers),
        "list its readers sorted, each once": list(readers) != sorted(set(readers)),
        f"a program of workspaces reads it, so its set is {NameSet.AGENTS}": (
            in_vendors and not _IN_WORKSPACES.isdisjoint(readers)
        ),
    }
    return tuple(problem for problem, wrong in found.items() if wrong)


def _unsorted(names: list[str]) -> list[str]:
    out = next((name for name, after in pairwise(names) if name > after), None)
    return [] if out is None else [f"{out}: the lines must be sorted by name"]
