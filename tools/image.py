"""Run the first stage of `deploy/Containerfile` without a container engine.

A folder stands in for the image: `COPY` copies from the checkout what `.dockerignore` lets in, and `RUN` runs there. This
machine's interpreter, C library and the pip of this environment stand in for those of the base image.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).parents[1]
DEPLOY: Final = CHECKOUT / "deploy"
PREFIX: Final = "/opt/"
SECONDS: Final = 600
"""The longest time that a step may take."""

_OURS: Final = ("BILLING_GRPC_", "MOLECULE_LLM_", "DATABASE_URL", "PYTHONPATH", "VIRTUAL_ENV")


def steps(stage: int) -> list[tuple[str, str]]:
    """Return the instructions of one stage as keyword and rest, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    instructions = [line.partition(" ") for line in text.replace("\\\n", " ").splitlines() if line]
    stages: list[list[tuple[str, str]]] = []
    for keyword, _, rest in instructions:
        if keyword == "FROM":
            stages.append([])
        stages[-1].append((keyword, rest))
    return stages[stage]


def build(place: Path, changes: dict[str, str] | None = None) -> Path:
    """Run the first stage in this folder; return the environment that the second stage takes from it.

    Args:
        place: an empty folder.
        changes: variables of the steps that differ here.

    Raises:
        RuntimeError: a step failed, or is of a kind that cannot be run here.
    """
    prefix, work, base = place / "opt", place / "src", place / "base"
    for folder in (work, base):
        folder.mkdir()
    # No links: an interpreter that was moved since it was built looks for its library beside the link.
    python = getattr(sys, "_base_executable", sys.executable)
    for name, command in (("python", python), ("pip", f"{sys.executable} -m pip")):
        (base / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        (base / name).chmod(0o755)
    machine = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    variables = {**machine, "PATH": f"{base}:{os.environ['PATH']}", **(changes or {})}
    for keyword, rest in steps(0):
        here = rest.replace(PREFIX, f"{prefix}/")
        match keyword:
            case "ENV":
                for name, value in re.findall(r"(\w+)=(\S+)", here):
                    variables[name] = value.replace("$PATH", variables["PATH"])
                variables.update(changes or {})
            case "COPY":
                *sources, target = here.split()
                _copy(sources, f"{work}/{target}")
            case "RUN":
                _run(here, work, variables)
            case "FROM" | "WORKDIR":
                pass
            case _:
                raise RuntimeError(f"{keyword} cannot be run here")
    shutil.rmtree(work)
    return prefix / "billing_grpc"


def _copy(sources: list[str], target: str) -> None:
    """Copy as COPY does: a folder's content, or files, of which `.dockerignore` lets in those that it names."""
    let_in = re.findall(r"^!(.+)$", (DEPLOY / "Containerfile.dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    for name in sources:
        if name not in let_in:
            raise RuntimeError(f".dockerignore keeps {name} out")
        for source in CHECKOUT.glob(name):
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                place = Path(target) / source.name if target.endswith("/") else Path(target)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)


def _run(command: str, folder: Path, variables: dict[str, str]) -> None:
    ran = subprocess.run(  # noqa: S603  # as above
        ["sh", "-c", command],  # noqa: S607  # the Containerfile's own
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"{command}\n{ran.stdout}")
