"""The account the embedded Postgres runs under, and the one way its programs are started."""

import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from billing_grpc.errors import EmbeddedPostgresError

UNPRIVILEGED: Final = ("postgres", "_postgres", "nobody")
"""Whom root becomes, the first that exists: Postgres refuses to run as root."""

_ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C",
    "TZ": "UTC",
    "PGCONNECT_TIMEOUT": "5",
}


@dataclass(frozen=True, slots=True)
class Account:
    """An operating system account the database server runs under.

    Attributes:
        name: its login name.
        uid: its user id.
        gid: its primary group id.
        client: the login name of this process, which connects to the server.
    """

    name: str
    uid: int
    gid: int
    client: str

    @property
    def dropped(self) -> bool:
        """Whether the server runs under another account than this process."""
        return self.uid != os.geteuid()

    def run(self, *argv: str | Path, timeout: float) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end under this account, with its output captured.

        Raises:
            OSError: it cannot be executed; `PermissionError` when the account cannot reach it.
            subprocess.TimeoutExpired: it took longer than `timeout` seconds and was killed.
        """
        return _run(argv, timeout, self)

    def spawn(
        self, argv: Sequence[str], output: IO[bytes] | int, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Starts a server under this account in a session of its own; `environment` adds variables.

        In its own session no Ctrl-C on our terminal reaches it: it must outlive our drain.
        """
        return subprocess.Popen(  # noqa: S603 - argv of our own making, no shell
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",  # ours may be out of the account's reach
            env={**_ENVIRONMENT, **environment},
            umask=0o077,
            start_new_session=True,
            user=self.uid if self.dropped else None,
            group=self.gid if self.dropped else None,
            extra_groups=[] if self.dropped else None,
        )


def run_as_ourselves(*argv: str | Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end under our own account; raises as `Account.run` does."""
    return _run(argv, timeout, None)


def _run(argv: Sequence[str | Path], timeout: float, account: Account | None) -> subprocess.CompletedProcess[str]:
    drop = account if account is not None and account.dropped else None
    return subprocess.run(  # noqa: S603 - argv of our own making, no shell
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
        cwd="/",
        env=_ENVIRONMENT,
        umask=0o077,
        start_new_session=True,
        user=drop.uid if drop else None,
        group=drop.gid if drop else None,
        extra_groups=[] if drop else None,
    )


def server_account(owner: int | None) -> Account:
    """The account for a directory that `owner` has used before, `None` for a new one.

    Not root: ourselves. Root: the owner, so that a cluster keeps its account when a better one
    appears in the passwd file later; for a new directory the first of `UNPRIVILEGED`.

    Raises:
        EmbeddedPostgresError: there is no such account.
    """
    ourselves = _by_uid(os.geteuid())
    if ourselves.pw_uid != 0:
        chosen = ourselves
    elif owner:
        chosen = _by_uid(owner)
    else:
        chosen = _first_unprivileged()
    return Account(chosen.pw_name, chosen.pw_uid, chosen.pw_gid, ourselves.pw_name)


def _by_uid(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise EmbeddedPostgresError(
            f"the embedded Postgres needs a passwd entry for user id {uid}, and there is none;"
            " add one, or set DATABASE_URL"
        ) from error


def _first_unprivileged() -> pwd.struct_passwd:
    for name in UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedPostgresError(
        "Postgres does not run as root, and none of the users"
        f" {', '.join(UNPRIVILEGED)} exists to run it; start as another user, or set DATABASE_URL"
    )
