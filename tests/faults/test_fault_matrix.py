"""Every fault against every RPC: a real Postgres, a real server, callers with deadlines all the while."""

from collections.abc import Iterator

import pytest

from tests.faults.matrix import Served, all_served, suffer
from tests.faults.table import FAULTS


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, Served]]:
    """The services, which no fault may end."""
    with all_served() as services:
        yield services


@pytest.mark.parametrize("name", FAULTS)
async def test_every_answer_is_in_time_and_safe_nothing_is_half_written_and_everything_recovers(
    served: dict[str, Served], name: str
) -> None:
    fault = FAULTS[name]

    outcome = await suffer(served[fault.where], fault)

    assert outcome.everything_wrong == []
