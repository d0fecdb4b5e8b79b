"""A server of the oldest PostgreSQL that this machine has."""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from billing_grpc.storage.embedded.account import server_account
from billing_grpc.storage.embedded.cluster import Cluster
from billing_grpc.storage.embedded.directory import private_directory, write_own
from billing_grpc.storage.embedded.installation import Installation, find_installation
from billing_grpc.storage.embedded.postmaster import process_of, stop_postmaster
from billing_grpc.storage.embedded.queries import DATABASE, wait_until_ready
from billing_grpc.storage.embedded.sockets import PORT, make_socket_directory, remove_socket_directory
from tests.places import place_for_databases
from tests.support.base_backup import copy_server

_PROMISED: Final = 14
"""The oldest major version that docs/operations.md promises."""

_PLACES: Final = ("usr/lib/postgresql/*", "usr/pgsql-*", "opt/homebrew/opt/postgresql@*")
_IN_PACKAGE: Final = 16
"""The older one of the two that the package of the embedded Postgres holds."""
_PATIENCE: Final = 20.0
_LET_IN: Final = "local all,replication all trust\n"  # the socket's directory is private


def installation() -> Installation:
    """Return the oldest one."""
    found = [find_installation(server_account(None), _IN_PACKAGE)]
    for root in (each for place in _PLACES for each in Path("/").glob(place)):
        major = re.search(r"\d+$", root.name)
        if major and int(major[0]) >= _PROMISED and (root / "bin" / "initdb").exists():
            found.append(Installation(root, int(major[0])))
    return min(found, key=lambda each: each.major)


@contextmanager
def running_older_postgres(primary: str = "") -> Iterator[str]:
    """The owner's address of a new server, removed at the end; with a primary, of a standby of it."""
    programs, account = installation(), server_account(None)
    directory = private_directory("billing-older-", place_for_databases(), account)
    cluster = Cluster(directory, account, programs, durable=False)
    sockets = make_socket_directory(account)
    process = None
    try:
        if primary:
            copy_server(account, programs, directory, f"--dbname={primary}")
        else:
            cluster.initialise()
        write_own(directory / "pg_hba.conf", _LET_IN, account)
        write_own(directory / "pg_ident.conf", "", account)
        process = cluster.serve(sockets, None)
        problem = wait_until_ready(process, cluster.installation, sockets, time.monotonic() + _PATIENCE)
        assert problem is None, f"{problem}: {cluster.log_tail()}"
        yield f"postgresql://{DATABASE}@/{DATABASE}?host={sockets}&port={PORT}"
    finally:
        if process is not None:
            running = process_of(process.pid)
            if running is not None:
                stop_postmaster(running)
            process.wait(_PATIENCE)
        remove_socket_directory(sockets)
        shutil.rmtree(directory, ignore_errors=True)
