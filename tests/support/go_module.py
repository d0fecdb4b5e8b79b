"""The Go client's module, and the Go toolchain to try it with."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
MODULE: Final = ROOT / "clients" / "go"
PATH: Final = "github.com/molecule-ai/billing-grpc/clients/go"
SECONDS: Final = 900
"""The first build of gRPC on a slow machine takes minutes."""


def toolchain() -> str:
    """Return the path of the Go toolchain, with the modules that the client needs at hand; skip the test without them."""
    found = shutil.which("go")
    if found is None:
        pytest.skip("go is not in PATH: the Go client was not tried")
    fetched = run(found, "mod", "download")
    if fetched.returncode != 0:
        pytest.skip(f"the modules of the Go client cannot be had: {fetched.stderr}")
    return found


def run(*command: str, folder: Path = MODULE, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a tool in the module; it may neither fetch a toolchain nor change what is pinned.

    Without paths in what is built, copies of the module share what the first of them compiled.
    """
    pinned = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -trimpath", "GOWORK": "off"}
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **pinned, **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def other_module(folder: Path, name: str) -> Path:
    """Make a module that requires the Go client as it is in this tree; return its folder."""
    folder.mkdir(exist_ok=True)
    requires = (MODULE / "go.mod").read_text(encoding="utf-8").replace(f"module {PATH}", f"module {name}")
    here = f"require {PATH} v0.0.0\n\nreplace {PATH} => {MODULE}\n"
    (folder / "go.mod").write_text(f"{requires}\n{here}", encoding="utf-8")
    shutil.copy(MODULE / "go.sum", folder)
    return folder
