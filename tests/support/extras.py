"""What each extra installs, and environments that hold just that."""

import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS: Final = ("cli", "server", "embedded", "tracing", "gateway")


def lend(name: str, packages: Path) -> None:
    """Link the files of an installed distribution into another environment's packages."""
    for file in distribution(name).files or ():
        if ".." not in file.parts:  # scripts
            place = packages / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(Path(str(file.locate())).absolute())


def closure(root: Distribution, *extras: str) -> set[str]:
    """The distributions that an installer adds to a distribution with these extras, as they are installed here."""
    own = canonicalize_name(root.name)
    seen: set[tuple[str, str]] = set()
    todo = [(own, extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in (root if name == own else distribution(name)).requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(wanted.name), each) for each in ("", *wanted.extras)]
    return {name for name, _ in seen} - {own}


def make_environment(place: Path, wheel: Path, *extras: str) -> Path:
    """Make an environment with the wheel, what it requires with these extras, and nothing else; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    for name in closure(of_wheel(packages), *extras):
        lend(name, packages)
    return place / "bin" / "python"


def of_wheel(packages: Path) -> Distribution:
    """The distribution that was unpacked into a directory."""
    (information,) = packages.glob("billing_grpc-*.dist-info")
    return Distribution.at(information)
