"""Run the whole matrix and write the results to docs/fault-matrix.md; fail if a cell is wrong."""

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

_PACE: Final = 0.07
"""Seconds that a caller pauses."""

_HEAD: Final = """# What every fault does to every RPC

Written by `make fault-matrix`. It does each fault to a real Postgres under a real `billing-grpc serve`. The server has
the service's own role, a storage timeout of 1 s, and `byok` as the organisation's default. During the fault three
callers call every RPC. Two ask about a workspace that stores `byok`, with deadlines of 2 s and 0.5 s. The third asks
about a workspace that stores `platform_managed`. The same runs are tests (`tests/faults/`), in which callers pause for
120 ms instead of 70. They fail if a status is wrong, if an answer opens more than is stored, if an answer is late, if a
write is half done, or if the service does not recover.

A cell holds three things: the kinds of answers; the slowest answer in milliseconds; and the milliseconds from the end
of the fault until all answers were the truth again (at most 1000; a caller calls every 70). *Closed* is `OK` with
`platform_managed` and the error. *Unavailable* is the status `UNAVAILABLE` with its reason. *Late* is a missed
deadline, which must not occur. *At once* is the median of the decisions' times, in milliseconds, while the service knew
that the database was down.

After each fault every acknowledged `Set` has exactly one entry in the log. Every other `Set` has taken effect
completely or not at all. Each row agrees with the last entry of its log. The service was never restarted, and holds as
many connections and open files as before. The times are from one run on a machine with two cores, which other programs
used too.

PgBouncer is Debian's, with `server_login_retry = 0.1`. The standby has every acknowledged write on its disk, so a
failover loses no write. In the rows with *behind* its replay was paused, so it still has `byok` for a workspace that
was closed since.
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
    "ListWorkspaceBillingModes": "ListWorkspaces",
    "SummarizeBillingModes": "Summarize",
}


def cell(seen: Cell) -> str:
    """Return one cell of the page."""
    verdicts = sorted(seen.verdicts, key=lambda verdict: (verdict == TRUTH, verdict))
    answered = f"{' or '.join(verdicts)}, {seen.worst * 1000:.0f}"
    return answered if not seen.reasons else f"{answered}, {(seen.recovery or 0) * 1000:.0f}"


def page(outcomes: dict[tuple[str, str], Outcome]) -> str:
    """Return the whole page."""
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
    """Run, write, and return the exit code."""
    outcomes = {}
    with all_deployments() as deployments:
        for run, fault in RUNS.items():
            outcomes[run] = asyncio.run(suffer(deployments.to(run[0]), fault, _PACE))
            wrong = outcomes[run].everything_wrong
            sys.stdout.write(f"{' '.join(run)}: {'; '.join(wrong) or 'as the contract says'}\n")
            sys.stdout.flush()
    PAGE.write_text(page(outcomes))
    return int(any(outcome.everything_wrong for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
