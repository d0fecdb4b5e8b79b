"""The directory of the embedded Postgres: whose it is, who can reach it, and who holds its lock."""

import fcntl
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from billing_grpc.errors import EmbeddedPostgresError
from billing_grpc.storage.embedded.account import Account

LOCK: Final = "billing-grpc.lock"
"""The file that marks a directory as ours, and whose lock says that it is in use."""

# One `cd` for each directory from the root down, under the account: permission bits alone would
# miss access lists and groups. Prints the first that refuses.
_FIRST_CLOSED: Final = 'for p do cd -- "$p" 2>/dev/null || { printf %s "$p"; exit 1; }; done'


def previous_owner(directory: Path) -> int | None:
    """The user id a directory of ours belongs to; None when it is new or not ours."""
    try:
        (directory / LOCK).lstat()
        return directory.stat().st_uid
    except FileNotFoundError:
        return None


def prepare(directory: Path, account: Account) -> None:
    """Makes the directory, mode 0700 and owned by the account, and the parents it lacks.

    Parents that exist are never changed, nor is a directory that holds anything but our own files.

    Raises:
        EmbeddedPostgresError: it is somebody's, holds other files, or the account cannot reach it.
        OSError: it cannot be made.
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
    """Makes the missing parents of a path with exactly this mode, whatever our umask."""
    missing = [parent for parent in path.parents if not parent.exists()]
    for parent in reversed(missing):
        try:
            parent.mkdir()
        except FileExistsError:  # another starter was faster, and sets the mode
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
            f"as root the embedded Postgres runs as {account.name}, who cannot enter {closed};"
            f" choose a directory elsewhere than {directory}, or start as another user than root"
        )


def lock(directory: Path, account: Account) -> int:
    """Takes the directory's lock and returns its descriptor; closing it, or dying, releases it.

    Raises:
        EmbeddedPostgresError: a living process holds it.
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
    """Opens a file of ours for appending, made when missing, mode 0600; returns its descriptor.

    The directory is the unprivileged account's, and we may be root: a link planted there must not
    make us write elsewhere.

    Raises:
        EmbeddedPostgresError: the file is not ours.
        OSError: it cannot be opened.
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
    """Replaces a file of the account's, mode 0600, with this text, at once."""
    descriptor, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if account.dropped:
            os.fchown(file.fileno(), account.uid, account.gid)
    Path(temporary).replace(path)


def private_directory(prefix: str, parent: Path, account: Account) -> Path:
    """A new directory, mode 0700 and owned by the account."""
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    if account.dropped:
        os.chown(made, account.uid, account.gid)
    return made
