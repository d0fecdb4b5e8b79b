"""The built wheel, beside its pinned requirements and nothing else: it migrates and serves without the checkout."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from billing_grpc import __version__
from billing_grpc.storage import migrations
from tests.support.commands import environment
from tests.support.polling import PATIENCE
from tests.support.servers import decision, serving

CHECKOUT: Final = Path(__file__).parents[2]
STUBS: Final = "billing_grpc/_gen/molecule/billing/v1/billing_mode"
INSTALLATION_SECONDS: Final = 600
OURS: Final = ("BILLING_GRPC_", "MOLECULE_LLM_", "DATABASE_URL", "PYTHONPATH", "VIRTUAL_ENV")


def run(*command: str | Path, cwd: Path) -> None:
    """Runs a tool as the machine is set up, its package index included, but without anything of ours."""
    machine = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    ended = subprocess.run(
        command, cwd=cwd, env=machine, capture_output=True, text=True, timeout=INSTALLATION_SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory outside of the checkout."""
    made = Path(tempfile.mkdtemp(prefix="billing-e2e-wheel-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def wheel(place: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, CHECKOUT, cwd=place)
    (built,) = place.glob("*.whl")
    return built


def pinned() -> dict[str, str]:
    """The requirements of a run as name and version."""
    text = (CHECKOUT / "requirements" / "run.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==([^ ;]+)(?: ; .*)? \\$", text, re.MULTILINE))


def lend(name: str, packages: Path) -> None:
    """Link the files of an installed distribution into another environment's packages."""
    for file in importlib.metadata.distribution(name).files or ():
        if ".." not in file.parts:  # scripts
            place = packages / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(Path(str(file.locate())).absolute())


@pytest.fixture(scope="module")
def installed(place: Path, wheel: Path) -> Path:
    """The script of an environment that holds the wheel and the pinned requirements, as they are installed here."""
    run(sys.executable, "-m", "venv", "--without-pip", place / "environment", cwd=place)
    python = place / "environment" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place / "environment")}))
    for name, version in pinned().items():
        with suppress(importlib.metadata.PackageNotFoundError):  # of another platform
            assert importlib.metadata.version(name) == version
            lend(name, packages)
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=place)
    run(*pip, "check", cwd=place)
    return python.with_name("billing-grpc")


def test_the_wheel_holds_the_migrations_the_stubs_the_vectors_and_the_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for name in migrations.names():
        assert {f"billing_grpc/_migrations/{name}{ending}" for ending in (".sql", ".rollback.sql")} <= names
    for stub in (STUBS, f"{STUBS}_service"):
        assert {f"{stub}{ending}" for ending in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")} <= names
    vectors = {f"billing_grpc/_conformance/{path.name}" for path in (CHECKOUT / "conformance").glob("*.json")}
    assert vectors
    assert vectors == {name for name in names if "_conformance" in name}
    assert "billing_grpc/py.typed" in names
    assert [
        name for name in names if name.split("/")[0] not in {"billing_grpc", f"billing_grpc-{__version__}.dist-info"}
    ] == []


def test_the_wheel_migrates_and_serves(installed: Path, place: Path, empty_database_url: str) -> None:
    variables = environment({"DATABASE_URL": empty_database_url})
    migrated = subprocess.run(
        [installed, "migrate", "up"],
        env=variables,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert migrated.stdout.splitlines() == [f"applied {name}" for name in migrations.names()]
    with serving((str(installed),)) as serve:
        server = serve(settings={"DATABASE_URL": empty_database_url, "MOLECULE_LLM_BILLING_MODE": "byok"})
        server.logged("database ready")
        unknown = "5f0e9b0e-0000-4000-8000-000000000000"
        assert decision(server.resolve(unknown)) == ("byok", "org_default")
        asked: list[str | Path] = [installed, "--address", server.address, "resolve", unknown]
        said = subprocess.run(
            asked, env=environment(), cwd=place, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        assert said.stdout.startswith("byok  (org_default)\n")
