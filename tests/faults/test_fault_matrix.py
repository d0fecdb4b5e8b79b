"""Every fault against every RPC: a real Postgres, a real server, callers with deadlines all the while."""

from collections.abc import Iterator
from typing import Final

import pytest

from tests.faults.deployments import Deployments, all_deployments
from tests.faults.matrix import suffer
from tests.faults.table import RUNS

_PACE: Final = 0.12
"""Seconds: longer than for the page, so that two processors are enough for three runs at once."""


@pytest.fixture(scope="module")
def deployments() -> Iterator[Deployments]:
    """The services, which no fault may end."""
    with all_deployments() as started:
        yield started


@pytest.mark.parametrize(("where", "name"), RUNS)
async def test_answers_are_in_time_and_safe_writes_are_whole_and_everything_recovers(
    deployments: Deployments, where: str, name: str
) -> None:
    outcome = await suffer(deployments.to(where), RUNS[where, name], _PACE)

    assert outcome.everything_wrong == []
