"""Write what follows from the catalogue of vendor names: the clients' list, and the table of the page.

python tools/generate_catalogue.py           write the files
python tools/generate_catalogue.py --check   write nothing; fail if a file is not up to date
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from billing_grpc.catalogue import RESERVED_PREFIX, NameSet, Table, digest, load
from billing_grpc.catalogue.programs import PROGRAMS
from billing_grpc.secret_keys import LOOK_ALIKES

ROOT: Final = Path(__file__).parents[1]
NAMES: Final = "conformance/blocked_keys.json"
PAGE: Final = "docs/catalogue.md"
BEGIN: Final = "<!-- made by tools/generate_catalogue.py -->\n"
END: Final = "<!-- end -->\n"


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of one program's names the sets hold.

    Attributes:
        title: the program.
        wanted: how many credentials, addresses and routes it reads, without the general ones.
        held: how many of them each set holds.
        general: how many general names it reads.
    """

    title: str
    wanted: int
    held: Mapping[NameSet, int]
    general: int


def coverage(table: Table) -> list[Coverage]:
    """Return the coverage of every program, in the order of `PROGRAMS`."""
    return [_of(table, program) for program in PROGRAMS]


def _of(table: Table, program: str) -> Coverage:
    read = {each.name: each for each in table.entries.values() if program in each.read_by}
    wanted = {name for name, each in read.items() if each.name_set is not None}
    held = {each: len(wanted & table.names(each)) for each in NameSet}
    return Coverage(PROGRAMS[program].title, len(wanted), held, len(read) - len(wanted))


def names_as_json() -> str:
    """Return what clients in every language need to know: the sets, their digests, the reserved prefix, the look-alikes."""
    table = load()
    sets = {each.value: sorted(table.names(each)) for each in NameSet}
    made = {
        "description": "Made from src/billing_grpc/catalogue/names.tsv and secret_keys.py by `make generate`; change those.",
        "version": table.version,
        "digests": {name: digest(names) for name, names in sets.items()},
        "reserved_prefix": RESERVED_PREFIX,
        "look_alikes": LOOK_ALIKES,
        "sets": sets,
    }
    return json.dumps(made, indent=1) + "\n"


def coverage_table() -> str:
    """Return how much of each program's names the sets hold, as a table in Markdown."""
    rows = [
        f"| {row.title} | {row.wanted} | {row.held[NameSet.CORE]} | {row.held[NameSet.AGENTS]} | "
        f"{row.held[NameSet.VENDORS]} | {row.general} |"
        for row in coverage(load())
    ]
    headings = "| program or library | its names | in `core` | in `agents` | in `vendors` | general, beside them |"
    return "\n".join([headings, "|---|---|---|---|---|---|", *rows]) + "\n"


def page(text: str) -> str:
    """Return the page with a fresh table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = load()
    sizes = "".join(f"| `{each}` | {len(table.names(each))} | `{digest(table.names(each))}` |\n" for each in NameSet)
    version = f"Version {table.version}.\n\n| set | names | digest |\n|---|---|---|\n{sizes}\n"
    return f"{before}{BEGIN}\n{version}{coverage_table()}\n{END}{after}"


def main() -> int:
    """Write the files, or say which are not up to date; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    wanted = {NAMES: names_as_json(), PAGE: page((ROOT / PAGE).read_text(encoding="utf-8"))}
    stale = [
        path
        for path, text in wanted.items()
        if not (ROOT / path).exists() or (ROOT / path).read_text(encoding="utf-8") != text
    ]
    if check and stale:
        sys.exit(f"not what the catalogue says: {', '.join(stale)}; run: make generate")
    for path in stale:
        (ROOT / path).write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
