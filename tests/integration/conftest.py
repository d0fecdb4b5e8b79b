"""Servers for a whole module: a Postgres for tests that hurt it, and a server that plays the vectors."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.victim import Victim, running_victim

SERVER: Final = (sys.executable, "-m", "billing_grpc", "conformance-server")


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


@pytest.fixture(scope="module")
def vectors() -> Iterator[str]:
    """The target of a server that plays the vectors, in a process of its own."""
    with subprocess.Popen(SERVER, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().removeprefix("listening on ").strip()
        finally:
            server.terminate()
