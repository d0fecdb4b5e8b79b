"""The private directory of the embedded server's socket."""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from billing_grpc.errors import EmbeddedPostgresError
from billing_grpc.storage.embedded.account import Account
from billing_grpc.storage.embedded.directory import private_directory

_PREFIX: Final = "billing-pg-"
"""The prefix of the names of our socket directories."""

_PARENTS: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - mkdtemp makes a private folder there
"""The parents of our socket directories, in order of preference. On macOS, the path of a socket has at most 103 bytes."""

PORT: Final = 5432
"""The number in the name of the socket; the server does not listen on TCP."""


def make_socket_directory(account: Account) -> Path:
    """Create a private socket directory, owned by the account, and return it.

    Raises:
        EmbeddedPostgresError: no parent is writable.
    """
    for parent in _PARENTS:
        if os.access(parent, os.W_OK):
            return private_directory(_PREFIX, parent, account)
    raise EmbeddedPostgresError(
        f"the socket of the embedded Postgres needs a writable directory: make one of {', '.join(map(str, _PARENTS))}"
        " writable, or set DATABASE_URL"
    )


def is_socket_directory(path: Path, uid: int) -> bool:
    """Return whether a path names one of our socket directories, owned by this user id."""
    # The unprivileged account can write the record, and we may be root and remove the directory that it names.
    if path.parent not in _PARENTS or not path.name.startswith(_PREFIX):
        return False
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid


def remove_socket_directory(path: Path) -> None:
    """Remove a socket directory and the two files that a killed server leaves in it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
            (path / name).unlink(missing_ok=True)
        path.rmdir()
