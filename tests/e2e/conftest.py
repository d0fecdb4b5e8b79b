"""What the end-to-end tests share: servers, a database for each module, a short directory, grpcurl."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from billing_grpc.storage import migrations
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


@pytest.fixture(scope="module")
def module_database_url(cluster_url: str) -> Iterator[str]:
    """A migrated database that all tests of a module share, each with workspaces of its own."""
    name = f"m_{uuid.uuid4().hex}"
    with psycopg.connect(cluster_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            url = make_conninfo(cluster_url, dbname=name)
            migrations.up(url)
            migrations.run_script(url, migrations.grants())
            yield url
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


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
