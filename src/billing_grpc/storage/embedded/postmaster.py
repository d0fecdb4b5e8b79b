"""The process of a Postgres server: find it by its record on disk, and stop it."""

import importlib
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from billing_grpc.errors import EmbeddedPostgresError
from billing_grpc.storage.embedded.installation import REMEDY
from billing_grpc.storage.embedded.sockets import is_socket_directory

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psutil

_STOP: Final = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_AT_ONCE_SECONDS: Final = 2.0
_CHILDREN_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02
_SOCKET_DIRECTORY_LINE: Final = 4


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a server in `postmaster.pid`. The server may no longer run.

    Attributes:
        pid: the process id of the server; another process may have it now.
        socket_directory: the directory of its socket; None if it is not one of ours or no longer exists.
    """

    pid: int
    socket_directory: Path | None


def read_record(data: Path, uid: int) -> Record | None:
    """Return the record in a data directory; None if there is none. `uid` is the user id of the server."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, ValueError, IndexError):
        return None
    recorded = Path(lines[_SOCKET_DIRECTORY_LINE]) if len(lines) > _SOCKET_DIRECTORY_LINE else None
    ours = recorded is not None and is_socket_directory(recorded, uid)
    return Record(pid, recorded if ours else None)


def find_postmaster(record: Record, data: Path, uid: int) -> "psutil.Process | None":
    """Return the recorded process if it is a running Postgres server of this user with this data directory.

    Return None for any other process, so that a process that was given the id later is never signalled. The working
    directory would be better evidence, but root in a container may not read that of another user's process.
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
    """Return the process with this id; None if it has ended."""
    ps = load_psutil()
    try:
        process: psutil.Process = ps.Process(pid)
    except ps.NoSuchProcess:
        return None
    return process


def children_of(process: "psutil.Process") -> "list[psutil.Process]":
    """Return the running children of a process; an empty list if it has ended."""
    with suppress(load_psutil().Error):
        return process.children(recursive=True)
    return []


def stop_postmaster(process: "psutil.Process") -> None:
    """Stop a server and its children: by a fast shutdown, then by an immediate shutdown, then by SIGKILL.

    It takes 40 seconds at most. The server has ended then, unless it is blocked in the kernel.
    """
    children = children_of(process)
    for number, seconds in _STOP:
        _signal([process], number)
        _signal([process, *children], signal.SIGCONT)  # a stopped process handles no other signal
        if _wait([process], seconds):
            break
    if not _wait(children, _CHILDREN_SECONDS):
        _signal(children, signal.SIGKILL)
        _wait(children, _CHILDREN_SECONDS)


def stop_postmaster_at_once(process: "psutil.Process") -> None:
    """Stop a server and its children without a checkpoint; the next start recovers all commits.

    It takes two seconds at most.
    """
    processes = [process, *children_of(process)]
    _signal([process], signal.SIGQUIT)
    _signal(processes, signal.SIGCONT)  # a stopped process handles no other signal
    if not _wait([process], _AT_ONCE_SECONDS):
        _signal(processes, signal.SIGKILL)


def _signal(processes: "Iterable[psutil.Process]", number: signal.Signals) -> None:
    for process in processes:
        with suppress(load_psutil().NoSuchProcess):
            process.send_signal(number)  # raises if another process has the id now


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
    """Import psutil, which is a dependency of the extra, and return it.

    Raises:
        EmbeddedPostgresError: psutil is not installed.
    """
    try:
        return importlib.import_module("psutil")
    except ImportError as error:
        raise EmbeddedPostgresError(f"the package psutil is not installed; {REMEDY}") from error
