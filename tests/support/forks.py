"""Runs `billing-grpc` in a fork of a process that has loaded it."""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, Final

from tests.support.polling import PATIENCE

POSSIBLE: Final = hasattr(os, "pidfd_open")
"""Whether this system tells the end of a fork; others start the program each time."""

_OWN: Final = ("BILLING_GRPC_", "DATABASE_URL", "MOLECULE_")
_SHELL: Final = {"PATH", "HOME"}
_TERMINAL: Final = {"TERM", "NO_COLOR", "FORCE_COLOR"}  # rich reads them at each use


def is_enough(environment: dict[str, str]) -> bool:
    """Return whether only the program reads this environment; the interpreter and libraries read theirs when loaded."""
    return POSSIBLE and all(name in _SHELL | _TERMINAL or name.startswith(_OWN) for name in environment)


@cache
def _control() -> socket.socket:
    """The socket of the process that forks; it ends with this one."""
    ours, theirs = socket.socketpair()
    with theirs:
        script = str(Path(__file__).with_name("fork_server.py"))
        process = subprocess.Popen(
            [sys.executable, "-P", script, str(theirs.fileno())],
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # an interrupt at the terminal is for the tests
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


class Fork:
    """A running `billing-grpc`, with the part of `subprocess.Popen` that the tests use; its input is empty."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        *,
        stdout: IO[Any] | int,
        stderr: IO[Any] | int,
        directory: Path | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self._report, theirs = socket.socketpair()
        with theirs, Path(os.devnull).open("r+b", buffering=0) as null:
            streams = [
                null.fileno() if each == subprocess.DEVNULL else each for each in (subprocess.DEVNULL, stdout, stderr)
            ]
            descriptors = [each if isinstance(each, int) else each.fileno() for each in (*streams, theirs)]
            socket.send_fds(_control(), [b"+"], descriptors)
        how = {
            "arguments": list(arguments),
            "environment": environment,
            "directory": str(directory or Path.cwd()),
            "session": start_new_session,
        }
        self._report.sendall(json.dumps(how).encode() + b"\n")
        self.pid = self._next_number(PATIENCE)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._next_number(timeout)
            self._report.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _next_number(self, timeout: float | None) -> int:
        if not select.select([self._report], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("billing-grpc", timeout or 0)
        line = b""
        while not line.endswith(b"\n"):
            piece = self._report.recv(1)
            assert piece, "the process that forks has ended"
            line += piece
        return int(line)
