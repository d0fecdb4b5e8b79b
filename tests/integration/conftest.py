"""A Postgres for tests that hurt it: one for each module that wants it, running again at the start of each test."""

from collections.abc import Iterator

import pytest

from tests.support.victim import Victim, running_victim


@pytest.fixture(scope="module")
def kept() -> Iterator[Victim]:
    """The one server of this module, migrated."""
    with running_victim() as running:
        yield running


@pytest.fixture
def victim(kept: Victim) -> Victim:
    """A server that runs at the start of the test."""
    kept.start()
    return kept
