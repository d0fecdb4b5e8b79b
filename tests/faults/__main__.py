"""Runs the whole matrix and writes what came out to docs/fault-matrix.md; fails when a cell is wrong."""

import asyncio
import sys
from pathlib import Path
from typing import Final

from tests.faults.calls import RPCS, TRUTH
from tests.faults.deployments import ANY_BYTES, BEHIND, BOTH, DIRECT, LINK, LINK_POOLED, all_deployments
from tests.faults.matrix import Cell, Outcome, suffer
from tests.faults.table import RUNS
from tests.support.pooler import SESSION, TRANSACTION

PAGE: Final = Path(__file__).parents[2] / "docs" / "fault-matrix.md"

_HEAD: Final = """# What every fault does to every RPC

Written by `make fault-matrix`, which does each of these to a real Postgres under a real `billing-grpc serve` that has the
service's own role and a storage timeout of 1 s, in an organisation whose default is `byok`. Meanwhile two callers ask for
every RPC, one with a deadline of 2 s and one of 0.5 s, about a workspace that stores `byok`, and a third about one that
stores `platform_managed`. The same runs are tests (`tests/faults/`), which fail on a wrong status, an answer that opens more
than is stored, a late answer, a half write, or no recovery.

A cell says what the answers were, in how many milliseconds the slowest came, and how many after the fault's end all of them
were the truth again (at most 1000; a caller asks every 70). *Closed* is `OK` with `platform_managed` and the error,
*unavailable* the status `UNAVAILABLE` with its reason, *late* a deadline that was missed, and there must be none. *At once*
is the median of the decisions' answers, in milliseconds, while the database was known to be down.

After each fault every acknowledged `Set` has exactly one entry in the log, every other is there as a whole or not at all,
each row says what its log ends in, and the service, which was never restarted, holds as many connections and files open as
before. The times are those of one run, on a machine with two cores that others use too.

PgBouncer is Debian's, with `server_login_retry = 0.1`. The standby has every acknowledged write on its disk, so a failover
loses none. Where it is *behind*, its replay was paused, and it still says `byok` of the workspace that was closed since.
"""
_TABLES: Final = {
    "Straight to the server": {DIRECT, BEHIND, ANY_BYTES},
    "Through PgBouncer in session mode": {SESSION},
    "Through PgBouncer in transaction mode": {TRANSACTION},
    "To a primary with a hot standby": {BOTH, LINK, LINK_POOLED},
}
_BY: Final = {
    BOTH: "; both hosts in the address",
    LINK: "; one host, whose name moves",
    LINK_POOLED: "; one host, whose name moves, behind PgBouncer in transaction mode",
}
_SHORT: Final = {
    "ResolveBillingMode": "Resolve",
    "BatchResolveBillingModes": "BatchResolve",
    "ValidateSecretWrite": "ValidateSecret",
    "PlanProvisionEnv": "PlanProvision",
    "GetWorkspaceBillingMode": "Get",
    "SetWorkspaceBillingMode": "Set",
    "ListBillingModeChanges": "List",
}


def cell(seen: Cell) -> str:
    """One cell of the page."""
    verdicts = sorted(seen.verdicts, key=lambda verdict: (verdict == TRUTH, verdict))
    answered = f"{' or '.join(verdicts)}, {seen.worst * 1000:.0f}"
    return answered if not seen.reasons else f"{answered}, {(seen.recovery or 0) * 1000:.0f}"


def page(outcomes: dict[tuple[str, str], Outcome]) -> str:
    """The whole page."""
    lines = [_HEAD]
    for title, ways in _TABLES.items():
        lines += [f"## {title}", "", "| fault | reasons | at once | " + " | ".join(_SHORT[rpc] for rpc in RPCS) + " |"]
        lines.append("|---" * (len(RPCS) + 3) + "|")
        lines += [_row(run, outcome) for run, outcome in outcomes.items() if run[0] in ways]
        lines.append("")
    return "\n".join(lines)


def _row(run: tuple[str, str], outcome: Outcome) -> str:
    told = sorted(set().union(*(seen.reasons for seen in outcome.cells.values())))
    at_once = "" if outcome.known_down is None else f"{outcome.known_down * 1000:.1f}"
    says = RUNS[run].says + _BY.get(run[0], "")
    first = [says, " ".join(f"`{reason}`" for reason in told), at_once]
    return f"| {' | '.join([*first, *(cell(outcome.cells[rpc]) for rpc in RPCS)])} |"


def main() -> int:
    """Runs, writes, answers the exit code."""
    outcomes = {}
    with all_deployments() as deployments:
        for run, fault in RUNS.items():
            outcomes[run] = asyncio.run(suffer(deployments.to(run[0]), fault))
            wrong = outcomes[run].everything_wrong
            sys.stdout.write(f"{' '.join(run)}: {'; '.join(wrong) or 'as the contract says'}\n")
            sys.stdout.flush()
    PAGE.write_text(page(outcomes))
    return int(any(outcome.everything_wrong for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
