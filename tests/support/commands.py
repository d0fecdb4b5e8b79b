"""Runs `billing-grpc` as a shell would, with a known environment."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from tests.support.forks import Fork, is_enough
from tests.support.polling import PATIENCE

COMMAND: Final = (sys.executable, "-m", "billing_grpc")
SETTINGS: Final = {
    "BILLING_GRPC_LOCAL_ADMIN": "on",
    "BILLING_GRPC_LISTEN": "127.0.0.1:0",
    "BILLING_GRPC_METRICS_LISTEN": "off",
}

Changes = Mapping[str, str | Path | None]


def environment(changes: Changes | None = None) -> dict[str, str]:
    """Return a shell's environment with `SETTINGS` alone, changed by `changes`; None removes a setting."""
    settings = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **SETTINGS, **(changes or {})}
    return {name: str(value) for name, value in settings.items() if value is not None}


Process = subprocess.Popen[bytes] | Fork


def start(
    *arguments: str,
    settings: Changes | None = None,
    stdout: IO[Any] | int,
    stderr: IO[Any] | int,
    directory: Path | None = None,
    start_new_session: bool = False,
) -> Process:
    """Start `billing-grpc` with these arguments; its input is empty."""
    variables = environment(settings)
    if is_enough(variables):
        return Fork(
            arguments,
            variables,
            stdout=stdout,
            stderr=stderr,
            directory=directory,
            start_new_session=start_new_session,
        )
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        cwd=directory,
        start_new_session=start_new_session,
    )


def billing_grpc(*arguments: str, settings: Changes | None = None) -> subprocess.CompletedProcess[str]:
    """Run `billing-grpc` with these arguments to its end."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = start(*arguments, settings=settings, stdout=stdout, stderr=stderr)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            code = process.wait()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())
