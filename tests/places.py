"""Where the tests' databases lie."""

import os
import tempfile
from pathlib import Path
from typing import Final

_IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - each database has a folder of its own
_ROOM: Final = 4 * 1024**3
"""Bytes; all databases of a parallel run take less than half of it."""


def place_for_databases() -> Path:
    """Return a folder in memory if there is room for databases, else the temporary folder.

    Making and dropping a database takes six times as much of a processor on a disk.
    """
    if _IN_MEMORY.is_dir() and os.access(_IN_MEMORY, os.W_OK):
        found = os.statvfs(_IN_MEMORY)
        if found.f_bavail * found.f_frsize >= _ROOM:
            return _IN_MEMORY
    return Path(tempfile.gettempdir()).resolve()
