"""The embedded Postgres server: start it, stop it, and return its URL."""

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
from billing_grpc.storage.embedded.cluster import Cluster, data_directory, data_major
from billing_grpc.storage.embedded.directory import lock, prepare, previous_owner
from billing_grpc.storage.embedded.installation import Installation, find_installation
from billing_grpc.storage.embedded.postmaster import (
    Record,
    find_postmaster,
    load_psutil,
    process_of,
    read_record,
    stop_postmaster,
    stop_postmaster_at_once,
)
from billing_grpc.storage.embedded.queries import DATABASE, START_SECONDS, may_serve, wait_until_ready
from billing_grpc.storage.embedded.sockets import PORT, make_socket_directory, remove_socket_directory

_RETRY_SECONDS: Final = 0.2
_REAP_SECONDS: Final = 5.0
_STILL_ATTACHED: Final = "pre-existing shared memory block"

_log = logging.getLogger(__name__)


def default_directory(home: Path) -> Path:
    """Return the default directory of the embedded Postgres; `home` is the home directory of the user.

    For root it is not below `home`, because the account that runs the server cannot enter that.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/billing_grpc/embedded")
    return home / ".local" / "state" / "billing_grpc" / "embedded"


class EmbeddedPostgres:
    """A private Postgres server in one directory. Only this user can connect, over a Unix socket.

    The data survives `stop`, the end of this process and the end of the server. Only one process at a time may run the
    server. The context starts it on entry and stops it on exit. Not thread-safe.

    Args:
        directory: the directory of data, log and lock. It is created if it is missing, and must hold no other files. If we
            are root, the unprivileged account that runs the server must be able to enter it.
        durable: False is faster, but data may be lost in a power cut; for tests.
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
        """The process id of the server; None if it was not started or has ended."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def url(self) -> str:
        """The `postgresql://` URL of the database with its owner as the user; valid for libpq in this process.

        Raises:
            EmbeddedPostgresError: the server does not run.
        """
        return self.url_as(DATABASE)

    def url_as(self, role: str) -> str:
        """Return the URL with another existing role of the database as the user.

        Raises:
            EmbeddedPostgresError: the server does not run.
        """
        if self.pid is None or self._sockets is None:
            raise EmbeddedPostgresError(f"the embedded Postgres in {self.directory} does not run")
        host = quote(os.fspath(self._sockets), safe="")
        return f"postgresql://{role}@/{DATABASE}?host={host}&port={PORT}"

    def start(self) -> str:
        """Start the server, with a new database cluster if there is none; return its URL.

        Return once a connection has succeeded, at most `START_SECONDS` after the server was started. If the server already
        runs, only return its URL. A server that a killed process left running in the directory is stopped first.

        Raises:
            EmbeddedPostgresError: the server could not be started, and no process is left running. The message names the
                directory and the remedy, or ends with the server's log.
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
        """Stop the server, close its connections, and release the directory; do nothing if it does not run.

        It usually takes milliseconds, and 45 seconds at most.
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
        """Stop the server without a checkpoint, for a process that is about to exit; no commit is lost.

        It takes two seconds at most. Safe at any moment, also during `start` and `stop`.
        """
        running = process_of(self._process.pid) if self._process is not None else None
        if running is not None:
            stop_postmaster_at_once(running)
        if self._sockets is not None:
            remove_socket_directory(self._sockets)

    def _start(self) -> None:
        load_psutil()  # without it, a server that was started could not be stopped
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
        self._sockets = make_socket_directory(account)
        self._serve(cluster, self._sockets, stale)

    def _stop_orphan(self, installation: Installation, account: Account) -> Record | None:
        """Stop the server that a killed process left running; return the stale record of a server that no longer runs."""
        data = data_directory(self.directory)
        record = read_record(data, account.uid)
        if record is None:
            return None
        orphan = find_postmaster(record, data, account.uid)
        if orphan is not None and may_serve(record, installation, data):
            _log.warning("stopping the Postgres server %d left in %s", orphan.pid, self.directory)
            stop_postmaster(orphan)
        if record.socket_directory is not None:
            remove_socket_directory(record.socket_directory)
        return read_record(data, account.uid)

    def _serve(self, cluster: Cluster, sockets: Path, stale: Record | None) -> None:
        """Start the server and return when the database answers."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            self._process = cluster.serve(sockets, stale)
            problem = wait_until_ready(self._process, cluster.installation, sockets, deadline)
            if problem is None:
                return
            tail = cluster.log_tail()
            # A session of a killed server finishes its statement before it ends.
            if _STILL_ATTACHED not in tail or time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"the embedded Postgres in {self.directory} {problem}; its log ends with:\n{tail}"
                )
            time.sleep(_RETRY_SECONDS)
