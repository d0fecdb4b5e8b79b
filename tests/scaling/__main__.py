"""Measure idle servers and failovers, and write the figures to docs/scaling.md; fail if an answer was wrong.

python -m tests.scaling          seven failovers each; writes the page
python -m tests.scaling 1        one each; writes nothing
"""

import re
import sys
from pathlib import Path
from typing import Final

from tests.scaling import failover, idle

PAGE: Final = Path(__file__).parents[2] / "docs" / "scaling.md"
RUNS: Final = 7


def replaced(page: str, name: str, table: str) -> str:
    """The page with another table in a place of this name."""
    begin, end = f"<!-- {name}: written by make scaling -->", f"<!-- end of {name} -->"
    assert begin in page
    pattern = re.compile(f"(?<={re.escape(begin)}).*(?={re.escape(end)})", re.DOTALL)
    return pattern.sub(lambda _: f"\n\n{table}\n\n", page)


def main() -> int:
    """Measure; answer 1 if an answer was wrong."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    of_idle, (of_failover, wrong) = idle.table(), failover.table(runs)
    page = replaced(replaced(PAGE.read_text(encoding="utf-8"), "idle", of_idle), "failover", of_failover)
    sys.stdout.write(page)
    if runs >= RUNS:
        PAGE.write_text(page, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
