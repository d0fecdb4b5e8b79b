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
