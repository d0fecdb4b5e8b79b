"""Runs `billing-grpc` as a shell would, with a known environment."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

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


def billing_grpc(*arguments: str, settings: Changes | None = None) -> subprocess.CompletedProcess[str]:
    """Run `billing-grpc` with these arguments to its end."""
    variables = environment(settings)
    if not is_enough(variables):
        return subprocess.run(
            [*COMMAND, *arguments], env=variables, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = Fork(arguments, variables, stdout=out, stderr=err)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            code = process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())
