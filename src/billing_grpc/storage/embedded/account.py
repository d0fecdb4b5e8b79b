"""The operating system account of the embedded Postgres, and how its programs are started under it."""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from billing_grpc.errors import EmbeddedPostgresError

UNPRIVILEGED: Final = ("postgres", "_postgres", "nobody")
"""The accounts that root uses, the first that exists. Postgres refuses to run as root."""

_ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C",
    "TZ": "UTC",
    "PGCONNECT_TIMEOUT": "5",
}


# Switch to the account, then execute the program under the same process id. With its argument `user=`, subprocess would fork
# and run gRPC's fork handlers, which crashed every fifth child. Without it, subprocess uses vfork, which runs no handlers. A
# new interpreter ignores two signals, and the program must not inherit that.
_BECOME: Final = """
import os, signal, sys
report, uid, gid = map(int, sys.argv[1:4])
os.set_inheritable(report, False)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
try:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    os.execv(sys.argv[4], sys.argv[4:])
except OSError as error:
    os.write(report, str(error.errno).encode())
    os._exit(127)
"""


@dataclass(frozen=True, slots=True)
class Account:
    """An operating system account that the database server runs under.

    Attributes:
        name: its login name.
        uid: its user id.
        gid: its primary group id.
        client: the login name of this process, which connects to the server.
    """

    name: str
    uid: int
    gid: int
    client: str

    @property
    def dropped(self) -> bool:
        """Return whether the server runs under another account than this process."""
        return self.uid != os.geteuid()

    def run(self, *argv: str | Path, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a program under this account until it ends; return its captured output and its return code.

        Raises:
            OSError: the program cannot be executed; `PermissionError` if the account cannot reach it.
            EmbeddedPostgresError: a signal ended the program, so its output proves nothing.
            subprocess.TimeoutExpired: the program took longer than `timeout` seconds and was killed.
        """
        with self._become(argv) as start:
            ended = _run(start.pop("args"), timeout, **start)
        if ended.returncode < 0:
            raise EmbeddedPostgresError(
                f"{argv[0]}, run as {self.name}, was ended by {_signal_name(-ended.returncode)}; try again"
            )
        return ended

    def spawn(
        self, argv: Sequence[str], output: IO[bytes] | int, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a server under this account in its own session; `environment` adds variables.

        A Ctrl-C on our terminal does not reach another session, and the server must outlive our drain. Raise `OSError` as
        `run` does.
        """
        started: subprocess.Popen[bytes] | None = None
        try:
            with self._become(argv) as start:
                started = subprocess.Popen(  # argv is ours, and there is no shell
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",  # the account may not enter our working directory
                    env={**_ENVIRONMENT, **environment},
                    umask=0o077,
                    start_new_session=True,
                    **start,
                )
        except OSError:
            if started is not None:
                started.wait()
            raise
        return started

    @contextmanager
    def _become(self, argv: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
        """Yield subprocess arguments that start a program under this account; raise `OSError` if it did not start."""
        if not self.dropped:
            yield {"args": argv}
            return
        reader, writer = os.pipe()
        # Isolated and without site packages, so that only the standard library runs as root.
        become = [sys.executable, "-I", "-S", "-c", _BECOME, str(writer), str(self.uid), str(self.gid), *argv]
        try:
            try:
                yield {"args": become, "pass_fds": [writer]}
            finally:
                os.close(writer)
            # The read ends when the program replaces the interpreter, or when the interpreter ends.
            number = os.read(reader, 16)
        finally:
            os.close(reader)
        if number:
            raise OSError(int(number), os.strerror(int(number)), os.fspath(argv[0]))


def run_as_ourselves(*argv: str | Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a program under our own account as `Account.run` does; a signal that ends it is a negative return code."""
    return _run(argv, timeout)


def _run(argv: Sequence[str | Path], timeout: float, **more: Any) -> subprocess.CompletedProcess[str]:
    ended: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603 - argv of our own making, no shell
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
        cwd="/",
        env=_ENVIRONMENT,
        umask=0o077,
        start_new_session=True,
        **more,
    )
    return ended


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def server_account(owner: int | None) -> Account:
    """Return the account for the server.

    It is our own account unless we are root. For root it is the owner of the directory, so that a cluster keeps its account
    if another one is added to the passwd file later. For a new directory it is the first account of `UNPRIVILEGED`.

    Args:
        owner: the user id that owns the directory; None for a new directory.

    Raises:
        EmbeddedPostgresError: the account does not exist.
    """
    ourselves = _by_uid(os.geteuid())
    if ourselves.pw_uid != 0:
        chosen = ourselves
    elif owner:
        chosen = _by_uid(owner)
    else:
        chosen = _first_unprivileged()
    return Account(chosen.pw_name, chosen.pw_uid, chosen.pw_gid, ourselves.pw_name)


def _by_uid(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise EmbeddedPostgresError(
            f"the embedded Postgres needs a passwd entry for user id {uid}; add one, or set DATABASE_URL"
        ) from error


def _first_unprivileged() -> pwd.struct_passwd:
    for name in UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedPostgresError(
        "Postgres does not run as root, and no user to run it exists"
        f" (looked for {', '.join(UNPRIVILEGED)}); start as another user, or set DATABASE_URL"
    )
