"""Runs our command as a person does: with a terminal in front of it."""

import fcntl
import os
import pty
import re
import struct
import tempfile
import termios
from dataclasses import dataclass
from typing import Final

from tests.support.commands import Changes, start
from tests.support.polling import PATIENCE

ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Seen:
    """What stood on the terminal, what went into the file beside it, and how the command ended."""

    screen: str
    piped: str
    code: int

    @property
    def text(self) -> str:
        """The screen without its colours."""
        return ESCAPES.sub("", self.screen)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.text.splitlines() if line.strip()]


def at_terminal(
    *arguments: str, settings: Changes | None = None, columns: int = 80, piped_output: bool = False
) -> Seen:
    """Runs a command of ours to its end; with `piped_output`, only standard error is a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with tempfile.TemporaryFile() as beside:
        process = start(
            *arguments,
            settings={"TERM": "xterm-256color", **(settings or {})},
            stdout=beside if piped_output else theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        screen = b""
        while part := _read(ours):
            screen += part
        os.close(ours)
        code = process.wait(PATIENCE)
        beside.seek(0)
        return Seen(screen.decode().replace("\r\n", "\n"), beside.read().decode(), code)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        # Linux says so when the last one that held the other side has gone.
        return b""
