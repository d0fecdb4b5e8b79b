"""How a command ends, and what it may write: exit codes, complaints, and text that cannot take over a terminal."""

import errno
import os
import sys
from typing import Final, NoReturn

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3
INTERRUPTED: Final = 130
_NOBODY_READS: Final = 141
"""As a shell says of a program that SIGPIPE ended."""


class Failed(Exception):
    """The command cannot do what was asked.

    Attributes:
        message: what happened and what to do about it, on one line.
        code: the exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def accept_any_text() -> None:
    """Writes text that the terminal's encoding lacks as an escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """The text on one line, with an escape for every control, direction mark, line break and other invisible character.

    What is stored may come from anybody who can write to the database; a terminal must not act on it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def complain(*lines: str) -> None:
    """Says on standard error what is wrong; further lines indented."""
    sys.stderr.write("billing-grpc: " + "\n  ".join(map(printable, lines)) + "\n")
    sys.stderr.flush()


def write(text: str) -> None:
    """Writes to standard output as it is, and ends the process quietly when nobody reads any more."""
    try:
        sys.stdout.write(text)
    except OSError as error:
        _end(error)


def flush() -> None:
    """What was written leaves; as `write`."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _end(error)


def _end(error: OSError) -> NoReturn:
    # What Python still holds would be written, and fail again, when the process ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        sys.exit(_NOBODY_READS)
    complain(f"standard output cannot be written: {error.strerror}")
    sys.exit(REFUSED)
