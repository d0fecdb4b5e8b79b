"""Check the files of `deploy/` with the tools of their formats, as far as these are installed.

A missing tool is skipped with a line that names it. With CI in the environment it is an error. The exit code is 1 if a file
is wrong or a tool is missing in CI. `make validators` installs the tools that PyPI has.

    python tools/validate_deploy.py
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc
import yaml

DEPLOY: Final = Path(__file__).parents[1] / "deploy"
KUBERNETES: Final = DEPLOY / "kubernetes"
OLDEST_KUBERNETES: Final = "1.31"
"""Beside the newest version that kubernetes-validate knows."""

COMMANDS: Final = {
    "Containerfile": ["hadolint", "Containerfile"],
    "compose.yaml": ["compose-go", "compose.yaml"],
    "envoy/envoy.yaml": ["envoy", "--mode", "validate", "--config-path"],
    "prometheus/alerts.yaml": ["promtool", "check", "rules", "prometheus/alerts.yaml"],
}
"""For each file, the tool that checks it, run in `deploy/`; Envoy's gets a copy."""
ENVOYS_CA: Final = "/run/billing-grpc/tls/ca.crt"
"""The file of authorities in Envoy's configuration, which Envoy wants to read."""


def overlays() -> list[str]:
    """Return the names of the overlays."""
    return sorted(path.parent.name for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))


def kustomize() -> list[str] | None:
    """Return the command that builds a folder; None if this machine has none."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return ["kubectl", "kustomize"] if shutil.which("kubectl") else None


def built(command: Sequence[str], overlay: str, folder: Path) -> str:
    """Return the manifests of an overlay, built from a copy in this folder; secrets that are not there are empty."""
    place = folder / "kubernetes"
    shutil.copytree(KUBERNETES, place, ignore=shutil.ignore_patterns("secrets"), dirs_exist_ok=True)
    for path in place.glob("overlays/*/kustomization.yaml"):
        for secret in yaml.safe_load(path.read_text(encoding="utf-8")).get("secretGenerator", ()):
            for name in secret["files"]:
                file = path.parent / name.rpartition("=")[2]
                file.parent.mkdir(exist_ok=True)
                file.touch()
    return _run([*command, os.fspath(place / "overlays" / overlay)])


def _run(command: Sequence[str]) -> str:
    """Return a tool's output.

    Raises:
        subprocess.CalledProcessError: it found a mistake; `output` says which.
    """
    return subprocess.run(  # noqa: S603  # of this file alone
        command, cwd=DEPLOY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    ).stdout


def _validate_kubernetes(build: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for overlay in overlays():
            files.append(f"{folder}/{overlay}.yaml")
            Path(files[-1]).write_text(built(build, overlay, Path(folder)), encoding="utf-8")
        for version in ((), ("--kubernetes-version", OLDEST_KUBERNETES)):
            _run(["kubernetes-validate", "--strict", *version, *files])


def _validate_envoy(command: Sequence[str], file: Path) -> None:
    authorities = Path(grpc.__file__).with_name("_cython") / "_credentials" / "roots.pem"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / file.name
        copy.write_text(file.read_text(encoding="utf-8").replace(ENVOYS_CA, str(authorities)), encoding="utf-8")
        _run([*command, str(copy)])


def _say(file: str, what: str) -> None:
    sys.stdout.write(f"deploy/{file}: {what}\n")


def main() -> int:
    """Run every check; return the exit code."""
    missing: dict[str, str] = {}
    build = kustomize()
    try:
        for file, command in COMMANDS.items():
            if shutil.which(command[0]):
                if command[0] == "envoy":
                    _validate_envoy(command, DEPLOY / file)
                else:
                    _run(command)
                _say(file, f"accepted by {command[0]}")
            else:
                missing[file] = command[0]
        if build and shutil.which("kubernetes-validate"):
            _validate_kubernetes(build)
            _say("kubernetes", f"{' and '.join(overlays())} built by {build[0]}, accepted by kubernetes-validate")
        else:
            missing["kubernetes"] = "kubernetes-validate" if build else "kustomize (or kubectl)"
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{error.output}\n{' '.join(error.cmd)}: exit code {error.returncode}\n")
        return 1
    for file, tool in missing.items():
        _say(file, f"skipped: {tool} is not installed")
    return 1 if missing and "CI" in os.environ else 0


if __name__ == "__main__":
    sys.exit(main())
