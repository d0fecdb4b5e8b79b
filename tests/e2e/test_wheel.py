"""The built wheel without the checkout: alone it is the client, with its extras it migrates and serves."""

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
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement

from billing_grpc import __version__
from billing_grpc.storage import migrations
from tests.support.commands import environment
from tests.support.extras import EXTRAS, closure, lend, make_environment, of_wheel
from tests.support.polling import PATIENCE
from tests.support.servers import decision, serving

CHECKOUT: Final = Path(__file__).parents[2]
INSTALL_PAGE: Final = CHECKOUT / "docs" / "install.md"
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
    """The requirements of a run on this machine, as name and version."""
    text = (CHECKOUT / "requirements" / "run.txt").read_text()
    wanted = map(Requirement, re.findall(r"^([\w.-]+==.*) \\$", text, re.MULTILINE))
    return {each.name: str(each.specifier)[2:] for each in wanted if each.marker is None or each.marker.evaluate()}


@pytest.fixture(scope="module")
def installed(place: Path, wheel: Path) -> Path:
    """The script of an environment that holds the wheel and the pinned requirements, as they are installed here."""
    run(sys.executable, "-m", "venv", "--without-pip", place / "environment", cwd=place)
    python = place / "environment" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place / "environment")}))
    for name, version in pinned().items():
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
    assert {
        "billing_grpc/py.typed",
        "billing_grpc/gateway/page.html",
        f"billing_grpc-{__version__}.dist-info/licenses/LICENSE",
    } <= names
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


CLIENT: Final = {"googleapis-common-protos", "grpcio", "grpcio-status", "protobuf", "typing-extensions"}
"""What a client needs: the four requirements, and what grpcio itself requires."""

BUILD: Final = {"hatchling", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers"}
"""What the pinned requirements hold to build the wheel itself."""

ASK: Final = """
import asyncio, logging, sys
from billing_grpc import catalogue, errors, model, provision, resolver, service_config, suspects, sync
from billing_grpc.client import BillingClient
async def main():
    async with BillingClient(sys.argv[1]) as client:
        plan = await client.plan_provision_env(env_keys=["OPENAI_API_KEY"])
        return plan, (await client.resolve("no id")).error.reason
with sync.BillingClient(sys.argv[1]) as blocking:
    print(blocking.resolve().mode)
plan, refused = asyncio.run(main())
print(plan.resolution.mode, refused, *provision.apply(plan, {"OPENAI_API_KEY": "x"}))
"""


def missing(python: Path, place: Path, *arguments: str) -> str:
    """The error of a command that its environment cannot run; it ends like a failed start."""
    ended = subprocess.run(
        [python, "-m", "billing_grpc", *arguments],
        env=environment({"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}),
        cwd=place,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    return line


def test_without_an_extra_the_wheel_is_the_client_alone(wheel: Path, place: Path) -> None:
    python = make_environment(place / "client", wheel)
    (packages,) = (place / "client").glob("lib/*/site-packages")
    assert closure(of_wheel(packages)) == CLIENT
    with serving() as serve:
        server = serve(settings={"DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "MOLECULE_LLM_BILLING_MODE": "byok"})
        asked = subprocess.run(
            [python, "-c", ASK, server.address], cwd=place, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    said = "byok byok SERVER_REFUSED MOLECULE_LLM_BILLING_MODE MOLECULE_LLM_BILLING_MODE_RESOLVED OPENAI_API_KEY"
    assert sorted(asked.stdout.split()) == sorted(said.split())
    error = missing(python, place, "resolve", "")
    assert "billing-grpc[cli]" in error
    assert "billing-grpc[server]" in error
    imported = subprocess.run(
        [python, "-c", "import billing_grpc.testing"], cwd=place, capture_output=True, text=True, check=False
    )
    assert imported.stderr.endswith("needs the extra `server`: pip install 'billing-grpc[server]'\n")


def test_the_command_line_alone_asks_and_names_the_extra_of_a_server(wheel: Path, place: Path) -> None:
    python = make_environment(place / "cli", wheel, "cli")
    with serving() as serve:
        server = serve(settings={"DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "MOLECULE_LLM_BILLING_MODE": "byok"})
        command: list[str | Path] = [python, "-m", "billing_grpc", "--address", server.address]
        # The setting of no command is reported, although the server's settings are not installed.
        asked = subprocess.run(
            [*command, "resolve", ""],
            env=environment({"BILLING_GRPC_ADRESS": "x"}),
            cwd=place,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        subprocess.run(
            [*command, "watch-health", "--once"], cwd=place, capture_output=True, timeout=PATIENCE, check=True
        )
    assert asked.stdout.startswith("byok  (org_default)\n")
    assert "BILLING_GRPC_ADDRESS" in asked.stderr
    for name in ("serve", "migrate", "conformance-server"):
        assert f"`{name}` needs the extra `server`: pip install 'billing-grpc[server]'" in missing(python, place, name)
    assert "`gateway` needs the extra `gateway`: pip install 'billing-grpc[gateway]'" in missing(
        python, place, "gateway"
    )


def test_a_server_names_the_extras_of_the_embedded_database_and_of_traces(wheel: Path, place: Path) -> None:
    python = make_environment(place / "server", wheel, "server")
    for settings, extra in (
        ({"DATABASE_URL": None}, "embedded"),
        ({"DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "BILLING_GRPC_TRACES_ENDPOINT": "http://x:4318"}, "tracing"),
    ):
        ended = subprocess.run(
            [python, "-m", "billing_grpc", "serve"],
            env=environment(settings),
            cwd=place,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode in {1, 2}
        assert f"pip install 'billing-grpc[{extra}]'" in ended.stderr


def test_the_pinned_requirements_are_those_of_all_extras(wheel: Path, place: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "unpacked")
    root = of_wheel(place / "unpacked")
    assert closure(root, *EXTRAS) | BUILD == pinned().keys()
    if sys.version_info[:2] == (3, 11):  # the page's figures are for this version
        rows = re.findall(r"^\| `billing-grpc(?:\[(\w+)\])?` \|.*\| (\d+) \|", INSTALL_PAGE.read_text(), re.MULTILINE)
        assert dict(rows) == {extra: str(len(closure(root, extra)) + 1) for extra in ("", *EXTRAS)}
