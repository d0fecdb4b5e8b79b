"""What the end-to-end tests share: servers, a workspace, a short directory, grpcurl."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.gateways import Site, site
from tests.support.servers import Serve, serving
from tests.support.workspaces import add_workspace

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
def workspace(module_database_url: str) -> str:
    """A workspace without a mode of its own."""
    return add_workspace(module_database_url)


@pytest.fixture(scope="module")
def place(module_serve: Serve, module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A server with every kind of listener, for gateways."""
    return site(module_serve, module_database_url, tmp_path_factory.mktemp("site"))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="billing-e2e-") as made:
        yield Path(made)


@pytest.fixture(scope="session")
def curl() -> str:
    """The path of curl."""
    found = shutil.which("curl")
    if found is None:
        pytest.skip("curl is not in PATH; install it with: apt-get install curl")
    return found


@pytest.fixture(scope="session")
def grpcurl() -> str:
    """The path of grpcurl."""
    found = shutil.which("grpcurl")
    if found is None:
        pytest.skip(f"grpcurl is not in PATH; install it with: go install {GRPCURL}")
    return found
