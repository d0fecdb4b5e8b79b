"""Which tests a parallel run keeps on one worker, one after the other.

A custom scheduler, because `--dist=loadgroup` of pytest-xdist 3.8 ignores its marks under pytest 9.2 (pytest-xdist#1386).
"""

from typing import Final

from xdist.scheduler import LoadScopeScheduling

# Tests that measure time, and those that hurt a database, in groups of about the same length.
_MATRIX: Final = "tests/faults/test_fault_matrix.py"
_MATRIX_GROUPS: Final = {
    **dict.fromkeys(("direct", "behind", "any_bytes"), "faults, one server"),
    **dict.fromkeys(("session", "both", "link", "link_pooled"), "faults, two servers"),
    "transaction": "faults, pooled",
}
"""By the way to the database, each with servers of its own."""
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

LONG: Final = {
    "tests/conformance/test_go.py",
    "tests/integration/test_client.py",
    "tests/integration/test_embedded.py",
    "tests/integration/test_forked_clients.py",
    "tests/integration/test_postgres_repository.py",
    "tests/integration/test_sync_client.py",
    "tests/integration/test_workspace_lists.py",
}
"""Files that take longest. A run that began one of them late would wait for it alone."""


def group_of(node_id: str) -> str:
    """Return the name of a test's group: its file, whose fixtures are then made once, if nothing else is said."""
    file, _, name = node_id.partition("::")
    if file == _MATRIX:
        return _MATRIX_GROUPS[name.partition("[")[2].partition("-")[0]]
    return TIMED.get(file, file)


def begins(node_id: str) -> int:
    """Return when the test begins: 0 if its group takes longest, 1 if its file is among the next, 2 for all others."""
    file = node_id.partition("::")[0]
    return 0 if file == _MATRIX or file in TIMED else 1 if file in LONG else 2


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist ships no types
    """Gives each group to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
