"""What a parallel run keeps apart: each file by itself, those that measure time together."""

from collections import Counter
from pathlib import Path

from tests.faults.table import RUNS
from tests.groups import LONG, TIMED, GroupScheduling, begins, group_of

ROOT = Path(__file__).parents[1]
MATRIX = "tests/faults/test_fault_matrix.py"


def test_a_file_that_measures_no_time_is_a_group_by_itself() -> None:
    assert group_of("tests/unit/test_logs.py::test_x[a::b]") == "tests/unit/test_logs.py"
    assert group_of("tests/e2e/test_logs.py::test_x") == "tests/e2e/test_logs.py"
    assert begins("tests/e2e/test_logs.py::test_x") == 2


def test_files_that_measure_time_begin_first_and_the_longest_next() -> None:
    assert [file for file in [*TIMED, *LONG] if not (ROOT / file).is_file()] == []
    assert {begins(f"{file}::test_x") for file in [*TIMED, MATRIX]} == {0}
    assert {begins(f"{file}::test_x") for file in LONG} == {1}
    assert group_of("tests/e2e/test_stopping.py::test_x") == group_of(
        "tests/integration/test_postgres_faults.py::test_y"
    )


def test_the_fault_matrix_is_three_groups_of_about_the_same_length() -> None:
    lengths = Counter(group_of(f"{MATRIX}::test_x[{where}-{name}]") for where, name in RUNS)
    assert len(lengths) == 3
    assert max(lengths.values()) - min(lengths.values()) <= 3
    assert all(
        len({group_of(f"{MATRIX}::x[{way}-{name}]") for way, name in RUNS if way == where}) == 1 for where, _ in RUNS
    )


def test_the_scheduler_asks_for_the_group() -> None:
    assert "_split_scope" in vars(GroupScheduling)
    assert "_split_scope" in vars(GroupScheduling.__mro__[1]), "pytest-xdist has renamed what the groups rely on"
