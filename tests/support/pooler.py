"""A real PgBouncer between a service and its server."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, LiteralString

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from billing_grpc.storage.embedded.account import Account, server_account
from billing_grpc.storage.embedded.directory import previous_owner, private_directory, write_own
from billing_grpc.storage.migrations import SERVICE_ROLE
from tests.support.victim import Victim

SESSION: Final = "session"
TRANSACTION: Final = "transaction"
POOL_SIZE: Final = 40
"""Sessions of the server that all clients share."""

_ADMIN: Final = "pooler_admin"
_PORT: Final = 6432
_PATIENCE: Final = 10.0
_PLACES: Final = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin:/opt/homebrew/bin"

# Defaults but for two: other clients of the role get places too, and a server that is back is asked again at once instead of
# after 15 s, for which no service behind the pooler could do anything.
_CONFIGURATION: Final = """[databases]
* = host={sockets} port=5432

[pgbouncer]
listen_port = {port}
unix_socket_dir = {directory}
unix_socket_mode = 0700
auth_type = trust
auth_file = {directory}/users
admin_users = {admin}
pool_mode = {mode}
server_login_retry = 0.1
default_pool_size = {size}
log_connections = 0
log_disconnections = 0
"""


def program() -> str:
    """The path of PgBouncer; without it the test is skipped."""
    found = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:{_PLACES}")
    if found is None:
        pytest.skip("pgbouncer is not installed; Debian and Ubuntu: apt-get install pgbouncer")
    return found


@dataclass
class Pooler:
    """A PgBouncer whose address survives its restarts."""

    directory: Path
    account: Account
    command: list[str]
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Starts it; returns when it answers."""
        with (self.directory / "log").open("ab") as log:
            self.process = self.account.spawn(self.command, log, {})
        deadline = time.monotonic() + _PATIENCE
        while True:
            with suppress(psycopg.OperationalError):
                self.ask("SHOW VERSION")
                return
            log_text = (self.directory / "log").read_text()
            assert self.process.poll() is None, log_text
            assert time.monotonic() < deadline, log_text
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and every connection through it, at once."""
        if self.process is not None:
            deadline = time.monotonic() + _PATIENCE
            while self.process.poll() is None:
                assert time.monotonic() < deadline, "the pooler does not end"
                # From version 1.23 on it waits for its clients after the first SIGTERM, and ends at the second.
                self.process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.05)
            self.process = None

    def ask(self, command: LiteralString) -> list[dict[str, object]]:
        """What its console answers."""
        address = make_conninfo(host=str(self.directory), port=_PORT, user=_ADMIN, dbname="pgbouncer")
        with psycopg.connect(address, autocommit=True) as console:
            answer = console.execute(command)
            if answer.description is None:
                return []
            names = [column.name for column in answer.description]
            return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    def renew_sessions(self) -> None:
        """Lets it open new sessions in the place of all; one that is being opened would count as a failed login."""
        while any(pool["sv_login"] for pool in self.ask("SHOW POOLS")):
            time.sleep(0.005)
        self.ask("RECONNECT")

    def through(self, url: str) -> str:
        """The same address, by way of the pooler."""
        return make_conninfo(url, host=str(self.directory), port=_PORT)

    def clients_of(self, url: str) -> int:
        """How many connections the service's role has to the pooler, for the database of the address."""
        database = conninfo_to_dict(url)["dbname"]
        return sum(
            client["user"] == SERVICE_ROLE and client["database"] == database for client in self.ask("SHOW CLIENTS")
        )


@contextmanager
def running_pooler(sockets: Path, victim: Victim, mode: str, configuration: str = _CONFIGURATION) -> Iterator[Pooler]:
    """A pooler in one of its modes.

    Args:
        sockets: a path to the directory of the server's socket, which may become another server's.
        victim: the server.
        mode: of pooling.
        configuration: with places for what differs here.
    """
    account = server_account(previous_owner(victim.server.directory))  # the server lets nobody else in
    directory = private_directory("billing-pooler-", sockets.parent, account)
    try:
        write_own(directory / "users", "".join(f'"{user}" ""\n' for user in (SERVICE_ROLE, "billing", _ADMIN)), account)
        text = configuration.format(
            sockets=sockets, port=_PORT, directory=directory, admin=_ADMIN, mode=mode, size=POOL_SIZE
        )
        write_own(directory / "pgbouncer.ini", text, account)
        pooler = Pooler(directory, account, [program(), str(directory / "pgbouncer.ini")])
        try:
            pooler.start()
            yield pooler
        finally:
            pooler.stop()
    finally:
        shutil.rmtree(directory)
