"""The Postgres that starts, in a directory of ours, when no database is configured."""

import logging
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from billing_grpc.errors import EmbeddedPostgresError
from billing_grpc.storage.embedded.account import Account, server_account
from billing_grpc.storage.embedded.cluster import DATABASE, Cluster, ask, data_directory, data_major
from billing_grpc.storage.embedded.directory import lock, prepare, previous_owner, private_directory
from billing_grpc.storage.embedded.installation import Installation, find_installation
from billing_grpc.storage.embedded.postmaster import (
    PORT,
    SOCKET_PARENTS,
    SOCKET_PREFIX,
    Record,
    children_of,
    find_postmaster,
    load_psutil,
    process_of,
    read_record,
    remove_socket_directory,
    stop_postmaster,
    stop_postmaster_at_once,
)

START_SECONDS: Final = 60.0
"""How long the server may take to answer, crash recovery included, before it is given up."""

_POLL_SECONDS: Final = 0.02
_RETRY_SECONDS: Final = 0.2
_REAP_SECONDS: Final = 5.0
_STILL_ATTACHED: Final = "pre-existing shared memory block"
_COUNT: Final = f"select count(*) from pg_database where datname = '{DATABASE}'"  # noqa: S608 - a constant

_log = logging.getLogger(__name__)


def default_directory(home: Path) -> Path:
    """Where the embedded Postgres lives when nothing else is said; `home` is the user's.

    Root's is not below its home, which the account that runs the server cannot enter.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/billing_grpc/embedded")
    return home / ".local" / "state" / "billing_grpc" / "embedded"


class EmbeddedPostgres:
    """A private Postgres server in one directory, reachable over a Unix socket by this user alone.

    The data survives `stop`, the death of this process and the death of the server. One process
    at a time may run it. Entering the context starts it, leaving it stops it. Not thread-safe.

    Args:
        directory: where everything lives: data, log, lock. Made when missing; never shared with
            other files. As root it must be reachable by the unprivileged user that runs the server.
        durable: False trades the survival of a power cut for speed, in tests.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self.directory = directory
        self._durable = durable
        self._lock: int | None = None
        self._sockets: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id of the server, None when it was not started or has exited."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the server, first, and of its children; empty when it does not run."""
        process = process_of(self.pid) if self.pid is not None else None
        return (process.pid, *(each.pid for each in children_of(process))) if process else ()

    @property
    def url(self) -> str:
        """The `postgresql://` URL of the database for its owner, for libpq in this process.

        Raises:
            EmbeddedPostgresError: the server does not run.
        """
        return self.url_as(DATABASE)

    def url_as(self, role: str) -> str:
        """The same for another role of the database, which has to exist.

        Raises:
            EmbeddedPostgresError: the server does not run.
        """
        if self.pid is None or self._sockets is None:
            raise EmbeddedPostgresError(f"the embedded Postgres in {self.directory} does not run")
        host = quote(os.fspath(self._sockets), safe="")
        return f"postgresql://{role}@/{DATABASE}?host={host}&port={PORT}"

    def start(self) -> str:
        """Starts the server, making the database cluster when there is none; returns its URL.

        Returns once a connection has worked, at most `START_SECONDS` after the server began. Does
        nothing but return the URL when it runs already. A server that a killed process left behind
        in the directory is stopped first.

        Raises:
            EmbeddedPostgresError: it could not be started; the message names the directory and the
                remedy, or ends with the server's log. Nothing is left running.
        """
        if self.pid is not None:
            return self.url
        self.stop()
        try:
            self._start()
        except BaseException as error:  # an interrupt must not leave a server behind either
            self.stop()
            if isinstance(error, (OSError, subprocess.SubprocessError)):
                raise EmbeddedPostgresError(
                    f"the embedded Postgres in {self.directory} could not be started: {error};"
                    " choose another directory, or set DATABASE_URL"
                ) from error
            raise
        return self.url

    def stop(self) -> None:
        """Stops the server, closing its connections, and releases the directory.

        Takes milliseconds as a rule and 45 seconds at most; does nothing when nothing runs.
        """
        if self._process is not None:
            running = process_of(self._process.pid) if self._process.poll() is None else None
            if running is not None:
                stop_postmaster(running)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAP_SECONDS)
            self._process = None
        if self._sockets is not None:
            remove_socket_directory(self._sockets)
            self._sockets = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def stop_at_once(self) -> None:
        """Ends the server without waiting for its checkpoint, for a process that exits next; loses nothing committed.

        Takes two seconds at most. Safe at any moment, in the middle of `start` and `stop` too.
        """
        running = process_of(self._process.pid) if self._process is not None else None
        if running is not None:
            stop_postmaster_at_once(running)
        if self._sockets is not None:
            remove_socket_directory(self._sockets)

    def _start(self) -> None:
        load_psutil()  # without it nothing could be stopped
        self.directory = self.directory.resolve()
        account = server_account(previous_owner(self.directory))
        prepare(self.directory, account)
        self._lock = lock(self.directory, account)
        major = data_major(self.directory)
        installation = find_installation(account, major)
        cluster = Cluster(self.directory, account, installation, self._durable)
        stale = self._stop_orphan(installation, account)
        if major is None:
            cluster.initialise()
        cluster.allow_only_ourselves()
        self._sockets = _socket_directory(account)
        self._serve(cluster, self._sockets, stale)

    def _stop_orphan(self, installation: Installation, account: Account) -> Record | None:
        """Stops the server that a killed process left behind; returns a record nobody stands by."""
        data = data_directory(self.directory)
        record = read_record(data, account.uid)
        if record is None:
            return None
        orphan = find_postmaster(record, data, account.uid)
        if orphan is not None and _may_serve(record, installation, data):
            _log.warning("stopping the Postgres server %d left in %s", orphan.pid, self.directory)
            stop_postmaster(orphan)
        if record.socket_directory is not None:
            remove_socket_directory(record.socket_directory)
        return read_record(data, account.uid)

    def _serve(self, cluster: Cluster, sockets: Path, stale: Record | None) -> None:
        """Starts the server and returns when the database answers."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            self._process = cluster.serve(sockets, stale)
            problem = _wait_until_ready(self._process, cluster.installation, sockets, deadline)
            if problem is None:
                return
            tail = cluster.log_tail()
            # Sessions of a killed server finish their statement before they notice its death.
            if _STILL_ATTACHED not in tail or time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"the embedded Postgres in {self.directory} {problem}; its log ends with:\n{tail}"
                )
            time.sleep(_RETRY_SECONDS)


def _wait_until_ready(
    process: subprocess.Popen[bytes], installation: Installation, sockets: Path, deadline: float
) -> str | None:
    """None once the database is there and answers, otherwise what went wrong."""
    said = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"exited with {process.returncode}"
        with suppress(subprocess.TimeoutExpired):
            answer = ask(installation, sockets, _COUNT)
            if answer.stdout.strip() == "1":
                return None
            if answer.returncode == 0:
                answer = ask(installation, sockets, f"create database {DATABASE}")
            said = answer.stderr.strip()
        time.sleep(_POLL_SECONDS)
    return f"did not answer within {START_SECONDS:.0f} s (the last answer: {said or 'none'})"


def _may_serve(record: Record, installation: Installation, data: Path) -> bool:
    """Whether the recorded server serves this data, as far as it says.

    No answer says nothing: it may be stopped, hung or still recovering.
    """
    if record.socket_directory is None:
        return True
    try:
        answer = ask(installation, record.socket_directory, "show data_directory")
    except subprocess.TimeoutExpired:
        return True
    return answer.returncode != 0 or Path(answer.stdout.strip()) == data


def _socket_directory(account: Account) -> Path:
    for parent in SOCKET_PARENTS:
        if os.access(parent, os.W_OK):
            return private_directory(SOCKET_PREFIX, parent, account)
    raise EmbeddedPostgresError(
        f"none of {', '.join(map(str, SOCKET_PARENTS))} is writable for the socket of the embedded"
        " Postgres; make one so, or set DATABASE_URL"
    )
