"""The servers under measurement: processes on a core of their own, and what they use of the machine."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import psutil

ROOT: Final = Path(__file__).parents[1]
_GO_ROUTE: Final = Path(__file__).parent / "go_route"
_STOP_SECONDS: Final = 15.0
_LISTENS: Final = "listening on "


def _allowed() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0))) if sys.platform == "linux" else ()


CORES: Final = _allowed()
PINNED: Final = len(CORES) > 1
"""Whether servers have a core of their own. Otherwise they share it with the generator, and ratios say less."""
SERVER_CORES: Final = CORES[:1]
OTHER_CORES: Final = CORES[-1:]
"""For the load generator and the database: what they cost must not count as the server's."""
TWO_CORES: Final = CORES[:2]


@contextmanager
def on_cores(cores: tuple[int, ...]) -> Iterator[None]:
    """Run this process, and the processes that it starts meanwhile, on these cores; do nothing where that cannot be."""
    if not PINNED or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """A process that prints where it listens. It starts with the object, and the context ends it."""

    def __init__(
        self, command: list[str], variables: Mapping[str, str], log: Path, cores: tuple[int, ...] = SERVER_CORES
    ) -> None:
        """Start the process, and wait until it listens.

        Raises:
            SystemExit: it ended instead; the text holds the end of its log.
        """
        with on_cores(cores), log.open("wb") as errors:
            environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables}
            self._process = subprocess.Popen(
                command, env=environment, cwd=log.parent, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._seen = psutil.Process(self._process.pid)
        said = self._process.stdout.readline() if self._process.stdout else ""
        if not said.startswith(_LISTENS):
            self.stop()
            raise SystemExit(f"{' '.join(command[:4])} did not start: {log.read_text(errors='replace')[-2000:]}")
        host, _, port = said.removeprefix(_LISTENS).strip().rpartition(":")
        self.address = host, int(port)

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Return the processor time that the process and its workers have used, in user mode and in the kernel."""
        return sum(self.cpu_seconds_of_each())

    def cpu_seconds_of_each(self) -> list[float]:
        """Return the same of each process, the parent first."""
        times = [each.cpu_times() for each in (self._seen, *self._seen.children(recursive=True))]
        return [each.user + each.system for each in times]

    def memory(self) -> int:
        """Return the resident bytes of the process."""
        return int(self._seen.memory_info().rss)

    def stop(self) -> None:
        """End the process, and wait until it has gone."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_port() -> int:
    """Return a port of the loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def python(*arguments: str) -> list[str]:
    """Return the command that runs a module of Python with the interpreter of this process."""
    return [sys.executable, "-m", *arguments]


def go_route(directory: Path) -> list[str] | None:
    """Build the Go route; return its command, or None where Go is missing or cannot build it."""
    go = shutil.which("go")
    if go is None:
        print("Go is not installed: the replaced route is left out")
        return None
    binary = directory / "go_route"
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    with suppress(OSError):
        built = subprocess.run(
            [go, "build", "-o", str(binary), "."],
            cwd=_GO_ROUTE,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode == 0:
            return [str(binary)]
        print(f"Go cannot build the replaced route, which is left out: {built.stderr.strip()[-300:]}")
    return None
