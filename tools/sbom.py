"""Write bills of materials (CycloneDX) for the wheel and for the image to dist/, and check that they list what is pinned.

Each is made from an environment: the one that the Containerfile fills, and one with the wheel and all its extras. Run by
`make sbom`, which builds the wheel first. The exit code is 1 if one lists another distribution or version than
requirements/ pins. The packages of the image's base are not listed: they are its publisher's.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from billing_grpc import __version__
from tools import image

DIST: Final = image.CHECKOUT / "dist"
BIN: Final = Path(sys.executable).parent
CHANGES: Final = {"UV_COMPILE_BYTECODE": "0", "UV_SYSTEM_CERTS": "1"}
"""The variables that differ from those of a build with an engine: byte code is no distribution."""

Listed = dict[str, str]


def pinned(file: str) -> Listed:
    """Return the versions that a file of requirements pins for this platform and interpreter, by canonical name."""
    text = (image.CHECKOUT / "requirements" / file).read_text(encoding="utf-8")
    found = [Requirement(each) for each in re.findall(r"^([\w.-]+==.*) \\$", text, re.MULTILINE)]
    here = [each for each in found if each.marker is None or each.marker.evaluate()]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in here}


def listed(bill: Path) -> Listed:
    """Return the versions that a bill lists, by canonical name."""
    components = json.loads(bill.read_text(encoding="utf-8"))["components"]
    return {canonicalize_name(each["name"]): each["version"] for each in components}


def expected() -> dict[str, Listed]:
    """Return what each bill must list: the wheel's has what its extras bring, and neither has what only builds."""
    of_image, ours = pinned("image.txt"), {"billing-grpc": __version__}
    run, build = pinned("run.txt"), pinned("build.txt")
    of_wheel = {name: version for name, version in run.items() if name not in build or name in of_image}
    return {f"billing_grpc-{__version__}": of_wheel | ours, f"billing_grpc-{__version__}-image": of_image | ours}


def _environment_of_wheel(place: Path) -> Path:
    wheel = DIST / f"billing_grpc-{__version__}-py3-none-any.whl"
    constraint = image.CHECKOUT / "requirements" / "run.txt"
    _run(BIN / "uv", "venv", "--quiet", "--python", sys.executable, place)
    given = ("--python", place, "--constraint", constraint, f"{wheel}[embedded,gateway,tracing]")
    _run(BIN / "uv", "pip", "install", "--quiet", "--system-certs", *given)
    for origin in place.glob("lib/*/site-packages/billing_grpc-*.dist-info/direct_url.json"):
        origin.unlink()  # where the wheel lies on this machine
    return place


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)  # noqa: S603  # of this file alone


def main() -> int:
    """Write and check both; return the exit code."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        places = [_environment_of_wheel(Path(folder) / "wheel")]
        (Path(folder) / "image").mkdir()
        places.append(image.build(Path(folder) / "image", CHANGES))
        for (name, wanted), place in zip(expected().items(), places, strict=True):
            bill = DIST / f"{name}.cdx.json"
            given = ("--short-PURLs", "--output-reproducible", "--validate", "--output-file", bill)
            _run(BIN / "cyclonedx-py", "environment", *given, place / "bin" / "python")
            surplus = listed(bill).items() ^ wanted.items()
            wrong += bool(surplus)
            sys.stdout.write(f"{bill.name}: {len(wanted)} distributions; not as pinned: {dict(surplus) or 'none'}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
