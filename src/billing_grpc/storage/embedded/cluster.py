"""The database cluster of the embedded Postgres: create its files, and start its server."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from billing_grpc.errors import EmbeddedPostgresError
from billing_grpc.storage.embedded.account import Account
from billing_grpc.storage.embedded.directory import open_own, private_directory, write_own
from billing_grpc.storage.embedded.installation import Installation
from billing_grpc.storage.embedded.postmaster import Record
from billing_grpc.storage.embedded.queries import DATABASE
from billing_grpc.storage.embedded.sockets import PORT

_INITDB_SECONDS: Final = 60.0
_LOG_TAIL_BYTES: Final = 4000
_INITDB_PREFIX: Final = "initdb-"
_BUILTIN_LOCALE_SINCE: Final = 17
_NOT_DURABLE: Final = ("fsync=off", "full_page_writes=off")


def data_directory(directory: Path) -> Path:
    """Return the data directory in the directory of the embedded Postgres."""
    return directory / "data"


def data_major(directory: Path) -> int | None:
    """Return the major version of Postgres that made the data; None if there is no data yet.

    Raises:
        EmbeddedPostgresError: the version file is damaged.
    """
    version = data_directory(directory) / "PG_VERSION"
    try:
        return int(version.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise EmbeddedPostgresError(
            f"{version} is damaged; restore {directory} from a backup, or choose another directory"
        ) from error


@dataclass(frozen=True, slots=True)
class Cluster:
    """One database cluster in its directory, whose lock the caller holds.

    Attributes:
        directory: the directory of the embedded Postgres.
        account: the account that the server runs under.
        installation: the programs of the version that made the data.
        durable: False is faster, but commits may be lost when the server or the machine fails.
    """

    directory: Path
    account: Account
    installation: Installation
    durable: bool

    def initialise(self) -> None:
        """Create the data directory atomically: it is complete, or it does not exist.

        Raises:
            EmbeddedPostgresError: initdb failed; the message ends with its output.
        """
        for leftover in self.directory.glob(f"{_INITDB_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        made = private_directory(_INITDB_PREFIX, self.directory, self.account)
        # The locales of the system sort differently on each platform.
        builtin = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        answer = self.account.run(
            self.installation.program("initdb"),
            f"--pgdata={made}",
            f"--username={DATABASE}",
            "--auth-local=peer",
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale=C",
            *(builtin if self.installation.major >= _BUILTIN_LOCALE_SINCE else ()),
            *(() if self.durable else ("--no-sync",)),
            timeout=_INITDB_SECONDS,
        )
        if answer.returncode:
            said = answer.stderr.strip()[-_LOG_TAIL_BYTES:]
            raise EmbeddedPostgresError(f"initdb failed in {self.directory}: {said}")
        made.rename(data_directory(self.directory))
        if self.durable:
            _sync_directory(self.directory)

    def allow_only_ourselves(self) -> None:
        """Allow only this process's user and the server's account to connect, under any role.

        Both can already change the files, so this gives them no new right.
        """
        write_own(self._hba_file, "local all all peer map=embedded\n", self.account)
        users = sorted({self.account.name, self.account.client})
        lines = "".join(f'embedded "{user}" all\n' for user in users)
        write_own(self._ident_file, lines, self.account)

    def serve(self, sockets: Path, stale: Record | None) -> subprocess.Popen[bytes]:
        """Start a server for the data; `stale` is the record of an earlier server that no longer runs."""
        argv = [
            os.fspath(self.installation.program("postgres")),
            "-D",
            os.fspath(data_directory(self.directory)),
        ]
        for setting in (
            "listen_addresses=",
            f"port={PORT}",
            f"unix_socket_directories={sockets}",
            "unix_socket_permissions=0700",
            f"hba_file={self._hba_file}",
            f"ident_file={self._ident_file}",
            "logging_collector=off",
            "log_checkpoints=off",  # the log is cut at starts only
            *(() if self.durable else _NOT_DURABLE),
        ):
            argv += ["-c", setting]
        # Postgres refuses to start while any process has the recorded id. With this variable of pg_ctl it ignores that id.
        # Removing postmaster.pid would also disable its check of the shared memory, which finds sessions that outlived
        # their server.
        environment = {"PG_GRANDPARENT_PID": str(stale.pid)} if stale else {}
        output = open_own(self._log_file, self.account)
        try:
            os.ftruncate(output, 0)
            return self.account.spawn(argv, output, environment)
        finally:
            os.close(output)

    def log_tail(self) -> str:
        """Return the last 4,000 bytes of the server's log."""
        try:
            text = self._log_file.read_bytes()[-_LOG_TAIL_BYTES:]
        except OSError as error:
            return str(error)
        return text.decode("utf-8", errors="replace").strip()

    @property
    def _hba_file(self) -> Path:
        return self.directory / "pg_hba.conf"

    @property
    def _ident_file(self) -> Path:
        return self.directory / "pg_ident.conf"

    @property
    def _log_file(self) -> Path:
        return self.directory / "postgres.log"


def _sync_directory(directory: Path) -> None:
    # initdb has synced the files, but not their new name.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
