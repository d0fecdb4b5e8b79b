"""What the end-to-end tests share: servers, a short directory, grpcurl."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.servers import Serve, serving

GRPCURL: Final = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that are stopped after the test."""
    with serving() as start:
        yield start


@pytest.fixture(scope="module")
def module_serve() -> Iterator[Serve]:
    """Starts servers that all tests of a module share."""
    with serving() as start:
        yield start


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="billing-e2e-") as made:
        yield Path(made)


@pytest.fixture(scope="session")
def grpcurl() -> str:
    """The path of grpcurl."""
    found = shutil.which("grpcurl")
    if found is None:
        pytest.skip(f"grpcurl is not in PATH; install it with: go install {GRPCURL}")
    return found
