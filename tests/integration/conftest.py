"""A Postgres for tests that hurt it: one for each module that wants it, running again at the start of each test."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from tests.faults.victim import Victim, running_victim


def add_workspace(url: str, mode: str) -> str:
    """A new workspace's id."""
    made = str(uuid.uuid4())
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, %s)", [made, mode])
    return made


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
