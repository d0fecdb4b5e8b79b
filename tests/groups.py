"""Which tests a parallel run keeps on one worker, one after the other.

A custom scheduler, because `--dist=loadgroup` of pytest-xdist 3.8 ignores its marks under pytest 9.2 (pytest-xdist#1386).
"""

from typing import Final

from xdist.scheduler import LoadScopeScheduling

# Tests that measure time, and those that hurt a database, in groups of about the same length.
_MATRIX: Final = "tests/faults/test_fault_matrix.py"
# Each group has services of its own. The faults straight to a server take longest, so they are two groups.
_MATRIX_GROUPS: Final = {
    **{pooled: f"faults, {pooled}" for pooled in ("session", "transaction")},
    **dict.fromkeys(("behind", "any_bytes", "both", "link", "link_pooled"), "faults, elsewhere"),
}
TIMED: Final = {
    "tests/e2e/test_rolling_restart.py": "timed",
    "tests/e2e/test_stopping.py": "timed",
    "tests/integration/test_behind_pooler.py": "timed",
    "tests/integration/test_durable_writes.py": "timed",
    "tests/integration/test_given_up_writes.py": "timed",
    "tests/integration/test_hostile_requests.py": "timed",
    "tests/integration/test_known_to_be_down.py": "timed",
    "tests/integration/test_postgres_faults.py": "timed",
}


def group_of(node_id: str) -> str:
    """Return the name of a test's group: its file, whose fixtures are then made once, if nothing else is said."""
    file, _, name = node_id.partition("::")
    if file == _MATRIX:
        where, _, fault = name.partition("[")[2].partition("-")
        return _MATRIX_GROUPS.get(where) or f"faults, {where}, {'one' if fault < 'n' else 'other'} half"
    return TIMED.get(file, file)


def is_timed(node_id: str) -> bool:
    """Return whether the test is in a group that takes long, and should begin first."""
    file = node_id.partition("::")[0]
    return file == _MATRIX or file in TIMED


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist ships no types
    """Gives each group to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
