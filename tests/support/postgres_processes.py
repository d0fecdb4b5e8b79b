"""The operating system's processes of an embedded Postgres."""

import psutil

from billing_grpc.storage.embedded import EmbeddedPostgres


def process_ids(server: EmbeddedPostgres) -> tuple[int, ...]:
    """Return the process ids of the server, first, and of its children; empty when it does not run."""
    if server.pid is None:
        return ()
    try:
        return (server.pid, *(each.pid for each in psutil.Process(server.pid).children(recursive=True)))
    except psutil.NoSuchProcess:
        return ()


def runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended may stay in the table of processes until its parent looks."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
