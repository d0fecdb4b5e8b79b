"""The directory of the embedded Postgres: its owner, its permissions and its lock."""

import fcntl
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from billing_grpc.errors import EmbeddedPostgresError
from billing_grpc.storage.embedded.account import Account

LOCK: Final = "billing-grpc.lock"
"""The lock file. It marks a directory as ours, and it is locked while the directory is in use."""

# Run `cd` under the account for each directory from the root down, and print the first that fails. Permission bits alone
# would miss access control lists and groups.
_FIRST_CLOSED: Final = 'for p do cd -- "$p" 2>/dev/null || { printf %s "$p"; exit 1; }; done'


def previous_owner(directory: Path) -> int | None:
    """Return the user id that owns a directory of ours; None if the directory is new or not ours."""
    try:
        (directory / LOCK).lstat()
        return directory.stat().st_uid
    except FileNotFoundError:
        return None


def prepare(directory: Path, account: Account) -> None:
    """Create the directory, with mode 0700 and owned by the account, and its missing parents.

    Existing parents are never changed, and neither is a directory with other files than ours.

    Raises:
        EmbeddedPostgresError: the directory belongs to another user, holds other files, or the account cannot enter it.
        OSError: the directory cannot be created.
    """
    make_parents(directory, 0o755 if account.dropped else 0o700)
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.stat()
    if found.st_uid not in {account.uid, os.geteuid()}:
        raise EmbeddedPostgresError(
            f"{directory} belongs to user id {found.st_uid}, not to {account.name}; choose another directory"
        )
    names = {each.name for each in directory.iterdir()}
    if names and LOCK not in names:
        raise EmbeddedPostgresError(
            f"{directory} holds files that are not ours; choose a directory that is new or empty"
        )
    if account.dropped and found.st_uid != account.uid:
        os.chown(directory, account.uid, account.gid)
    directory.chmod(0o700)
    _require_reachable(directory, account)


def make_parents(path: Path, mode: int) -> None:
    """Create the missing parents of a path with exactly this mode, independent of the umask."""
    missing = [parent for parent in path.parents if not parent.exists()]
    for parent in reversed(missing):
        try:
            parent.mkdir()
        except FileExistsError:  # another process was faster, and sets the mode
            continue
        parent.chmod(mode)


def _require_reachable(directory: Path, account: Account) -> None:
    if not account.dropped:
        return
    chain = [*reversed(directory.parents), directory]
    answer = account.run("/bin/sh", "-c", _FIRST_CLOSED, "sh", *chain, timeout=10)
    if answer.returncode:
        closed = answer.stdout or str(directory)
        raise EmbeddedPostgresError(
            f"as root the embedded Postgres runs as {account.name}, and this user cannot enter {closed};"
            f" choose a directory elsewhere than {directory}, or start as another user than root"
        )


def lock(directory: Path, account: Account) -> int:
    """Lock the directory and return the descriptor of the lock. Closing it, or the end of the process, releases the lock.

    Raises:
        EmbeddedPostgresError: another process holds the lock.
    """
    descriptor = open_own(directory / LOCK, account)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise EmbeddedPostgresError(
            f"another process runs the embedded Postgres in {directory};"
            " stop it, choose another directory, or set DATABASE_URL"
        ) from error
    return descriptor


def open_own(path: Path, account: Account) -> int:
    """Open a file of ours for appending, created with mode 0600 if it is missing; return its descriptor.

    The directory belongs to the unprivileged account, and we may be root. So a link in it must not be followed.

    Raises:
        EmbeddedPostgresError: the file is not ours.
        OSError: the file cannot be opened.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    found = os.fstat(descriptor)
    owners = {account.uid, os.geteuid()}
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid not in owners:
        os.close(descriptor)
        raise EmbeddedPostgresError(f"{path} is not a file of ours; remove it")
    if account.dropped:
        os.fchown(descriptor, account.uid, account.gid)
    return descriptor


def write_own(path: Path, text: str, account: Account) -> None:
    """Replace a file of the account atomically with this text, with mode 0600."""
    descriptor, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if account.dropped:
            os.fchown(file.fileno(), account.uid, account.gid)
    Path(temporary).replace(path)


def private_directory(prefix: str, parent: Path, account: Account) -> Path:
    """Create a directory with mode 0700, owned by the account, and return it."""
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    if account.dropped:
        os.chown(made, account.uid, account.gid)
    return made
