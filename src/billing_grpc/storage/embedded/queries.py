"""Query the embedded server over its socket, with psql."""

import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from billing_grpc.storage.embedded.account import run_as_ourselves
from billing_grpc.storage.embedded.installation import Installation
from billing_grpc.storage.embedded.postmaster import Record
from billing_grpc.storage.embedded.sockets import PORT

DATABASE: Final = "billing"
"""The name of the database, and of its owner, a superuser."""

START_SECONDS: Final = 60.0
"""The seconds within which the server must answer after its start, crash recovery included."""

_QUERY_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02
_COUNT: Final = "select count(*) from pg_database where datname = current_user"
"""Counts the database, which has its owner's name."""


def _ask(installation: Installation, sockets: Path, sql: str) -> subprocess.CompletedProcess[str]:
    """Run one SQL statement on the server of a socket directory; return psql's unaligned output.

    A return code other than 0 means that the connection or the statement failed.

    Raises:
        subprocess.TimeoutExpired: psql took longer than 10 seconds.
    """
    return run_as_ourselves(
        installation.program("psql"),
        "--no-psqlrc",
        "--no-password",
        "--no-align",
        "--tuples-only",
        f"--host={sockets}",
        f"--port={PORT}",
        f"--username={DATABASE}",
        "--dbname=postgres",
        f"--command={sql}",
        timeout=_QUERY_SECONDS,
    )


def wait_until_ready(
    process: subprocess.Popen[bytes], installation: Installation, sockets: Path, deadline: float
) -> str | None:
    """Wait until the database exists and answers; return the problem, or None."""
    said = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"exited with {process.returncode}"
        with suppress(subprocess.TimeoutExpired):
            answer = _ask(installation, sockets, _COUNT)
            if answer.stdout.strip() == "1":
                return None
            if answer.returncode == 0:
                answer = _ask(installation, sockets, f"create database {DATABASE}")
            said = answer.stderr.strip()
        time.sleep(_POLL_SECONDS)
    return f"did not answer within {START_SECONDS:.0f} s (the last answer: {said or 'none'})"


def may_serve(record: Record, installation: Installation, data: Path) -> bool:
    """Return False if the recorded server answers that it serves other data.

    Without an answer return True: the server may be stopped, hung or still recovering.
    """
    if record.socket_directory is None:
        return True
    try:
        answer = _ask(installation, record.socket_directory, "show data_directory")
    except subprocess.TimeoutExpired:
        return True
    return answer.returncode != 0 or Path(answer.stdout.strip()) == data
