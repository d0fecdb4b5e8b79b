"""A running Postgres server process: whose it is, what it left on disk, and how it is stopped."""

import importlib
import os
import signal
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from billing_grpc.errors import EmbeddedPostgresError
from billing_grpc.storage.embedded.installation import REMEDY

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psutil

SOCKET_PREFIX: Final = "billing-pg-"
"""How the names of our socket directories begin."""

SOCKET_PARENTS: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - only for mkdtemp, mode 0700
"""Where they are made, in this order: a socket's path is limited to 103 bytes on macOS."""

PORT: Final = 5432
"""The number in the socket's name; nothing listens on TCP."""

_STOP: Final = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_AT_ONCE_SECONDS: Final = 2.0
_CHILDREN_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02
_SOCKET_DIRECTORY_LINE: Final = 4


@dataclass(frozen=True, slots=True)
class Record:
    """What a server wrote about itself to `postmaster.pid`; it may be long dead.

    Attributes:
        pid: its process id then, which may be another process's now.
        socket_directory: the directory of its socket, when it is one of ours and still there.
    """

    pid: int
    socket_directory: Path | None


def read_record(data: Path, uid: int) -> Record | None:
    """The record in a data directory, None when there is none; `uid` is the server's user."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, ValueError, IndexError):
        return None
    recorded = Path(lines[_SOCKET_DIRECTORY_LINE]) if len(lines) > _SOCKET_DIRECTORY_LINE else None
    ours = recorded is not None and _is_socket_directory(recorded, uid)
    return Record(pid, recorded if ours else None)


def _is_socket_directory(path: Path, uid: int) -> bool:
    # The file can be written by the unprivileged account, and we may be root and about to remove
    # what it names.
    if path.parent not in SOCKET_PARENTS or not path.name.startswith(SOCKET_PREFIX):
        return False
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid


def remove_socket_directory(path: Path) -> None:
    """Removes a socket directory and the two files a killed server leaves in it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


def find_postmaster(record: Record, data: Path, uid: int) -> "psutil.Process | None":
    """The living Postgres server of this user with this data directory under the recorded id.

    None for any other process, so that a stranger who was given the id later is never signalled.
    The working directory would tell more, but root in a container may not read another user's.
    """
    ps = load_psutil()
    try:
        process: psutil.Process = ps.Process(record.pid)
        ours = (
            process.name() == "postgres"
            and process.uids().effective == uid
            and os.fspath(data) in process.cmdline()
            and process.status() != ps.STATUS_ZOMBIE
        )
    except (ps.Error, ValueError, OverflowError):
        return None
    return process if ours else None


def process_of(pid: int) -> "psutil.Process | None":
    """The process with this id, None when it is gone."""
    ps = load_psutil()
    try:
        process: psutil.Process = ps.Process(pid)
    except ps.NoSuchProcess:
        return None
    return process


def children_of(process: "psutil.Process") -> "list[psutil.Process]":
    """The living children of a process, none when it is gone."""
    with suppress(load_psutil().Error):
        return process.children(recursive=True)
    return []


def stop_postmaster(process: "psutil.Process") -> None:
    """Stops a server and its children: a fast shutdown, at once when it takes long, then by force.

    Returns after 40 seconds at the latest; the server is gone unless the kernel holds it.
    """
    children = children_of(process)
    for number, seconds in _STOP:
        _signal([process], number)
        _signal([process, *children], signal.SIGCONT)  # a stopped process hears nothing else
        if _wait([process], seconds):
            break
    if not _wait(children, _CHILDREN_SECONDS):
        _signal(children, signal.SIGKILL)
        _wait(children, _CHILDREN_SECONDS)


def stop_postmaster_at_once(process: "psutil.Process") -> None:
    """Stops a server and its children without a checkpoint: the next start recovers what was committed.

    Returns after two seconds at the latest.
    """
    all_of_it = [process, *children_of(process)]
    _signal([process], signal.SIGQUIT)
    _signal(all_of_it, signal.SIGCONT)  # a stopped process hears nothing else
    if not _wait([process], _AT_ONCE_SECONDS):
        _signal(all_of_it, signal.SIGKILL)


def _signal(processes: "Iterable[psutil.Process]", number: signal.Signals) -> None:
    for process in processes:
        with suppress(load_psutil().NoSuchProcess):
            process.send_signal(number)  # refuses when the id has passed to another process


def _wait(processes: "Iterable[psutil.Process]", seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    for process in processes:
        while not _is_gone(process):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
    return True


def _is_gone(process: "psutil.Process") -> bool:
    ps = load_psutil()
    try:
        return not process.is_running() or process.status() == ps.STATUS_ZOMBIE
    except ps.NoSuchProcess:
        return True


def load_psutil() -> ModuleType:
    """The package psutil, which comes with the extra.

    Raises:
        EmbeddedPostgresError: it is not installed.
    """
    try:
        return importlib.import_module("psutil")
    except ImportError as error:
        raise EmbeddedPostgresError(f"the package psutil is not installed; {REMEDY}") from error
