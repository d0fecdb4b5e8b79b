"""What a parallel run keeps apart: each file by itself, those that measure time together."""

from collections import Counter
from pathlib import Path

from tests.faults.table import RUNS
from tests.groups import TIMED, GroupScheduling, group_of, is_timed

ROOT = Path(__file__).parents[1]
MATRIX = "tests/faults/test_fault_matrix.py"


def test_a_file_that_measures_no_time_is_a_group_by_itself() -> None:
    assert group_of("tests/unit/test_logs.py::test_x[a::b]") == "tests/unit/test_logs.py"
    assert group_of("tests/e2e/test_logs.py::test_x") == "tests/e2e/test_logs.py"
    assert not is_timed("tests/e2e/test_logs.py::test_x")


def test_files_that_measure_time_exist_and_begin_first() -> None:
    assert [file for file in TIMED if not (ROOT / file).is_file()] == []
    assert all(is_timed(f"{file}::test_x") for file in [*TIMED, MATRIX])
    assert group_of("tests/e2e/test_stopping.py::test_x") == group_of(
        "tests/integration/test_postgres_faults.py::test_y"
    )


def test_the_fault_matrix_is_five_groups_and_each_deployment_is_in_one_or_two() -> None:
    groups = {(where, name): group_of(f"{MATRIX}::test_x[{where}-{name}]") for where, name in RUNS}
    assert len(set(groups.values())) == 5
    for pooled in ("session", "transaction"):
        assert {where for (where, _), group in groups.items() if group == f"faults, {pooled}"} == {pooled}
    halves = Counter(group for (where, _), group in groups.items() if where == "direct")
    assert len(halves) == 2
    assert min(halves.values()) >= 6


def test_the_scheduler_asks_for_the_group() -> None:
    assert "_split_scope" in vars(GroupScheduling)
    assert "_split_scope" in vars(GroupScheduling.__mro__[1]), "pytest-xdist has renamed what the groups rely on"
