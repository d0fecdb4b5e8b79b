"""The copy of a running server that becomes its standby."""

from pathlib import Path
from typing import Final

from billing_grpc.storage.embedded.account import Account
from billing_grpc.storage.embedded.cluster import data_directory
from billing_grpc.storage.embedded.installation import Installation

_PATIENCE: Final = 60.0


def copy_server(account: Account, installation: Installation, directory: Path, *address: str) -> None:
    """Copies the server at the address, as `pg_basebackup` takes it, into the directory of another, which will follow it."""
    copied = account.run(
        installation.program("pg_basebackup"),
        f"--pgdata={data_directory(directory)}",
        *address,
        "--checkpoint=fast",
        "--write-recovery-conf",
        "--no-sync",
        timeout=_PATIENCE,
    )
    assert copied.returncode == 0, copied.stderr
