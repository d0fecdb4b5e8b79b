"""End a command and write its output: exit codes, errors on standard error, and text that a terminal cannot act on."""

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn

import click

from billing_grpc.stalled_reader import write_within

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3
INTERRUPTED: Final = 130
_SIGNALLED: Final = 128
_LAST_FLUSH: Final = 0.5
"""Seconds for the readers to take the remaining output when a command is interrupted."""
_STDERR: Final = 2
_BROKEN_PIPE: Final = 141
"""The code that a shell gives a program that SIGPIPE ended."""


class Failed(Exception):
    """The command failed.

    Attributes:
        message: what happened and the remedy, on one line.
        code: the exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def accept_any_text() -> None:
    """Write characters that the terminal's encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def open_missing_streams() -> None:
    """Replace each closed standard stream by one that fails like it, so that no file we open gets its number."""
    for name, flags, mode in (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_RDONLY, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, errors="backslashreplace"))


def printable(text: str) -> str:
    """Return the text on one line, with an escape for every control, direction mark and other invisible character.

    Stored text may come from anyone who can write to the database; a terminal must not act on it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def print_error(*lines: str) -> None:
    """Print what is wrong to standard error, further lines indented; do nothing if that cannot be written."""
    _write_error("billing-grpc: " + "\n  ".join(map(printable, lines)) + "\n")


def print_last_error(text: str) -> None:
    """Print why a server ends, without waiting for a reader that is stuck: a supervisor waits for the end."""
    if sys.stderr is not None:
        write_within(_STDERR, f"billing-grpc: {printable(text)}\n".encode(errors="backslashreplace"))


def print_usage_error(error: click.ClickException) -> None:
    """Print click's message for an error, escaped, because it may repeat the arguments."""
    said = io.StringIO()
    error.show(said)
    _write_error("".join(f"{printable(line)}\n" for line in said.getvalue().expandtabs().splitlines()))


def write(text: str) -> None:
    """Write text to standard output unchanged; end the process silently if the reader has gone."""
    try:
        with _interruptible():
            sys.stdout.write(text)
    except OSError as error:
        _exit_for_output(error)


def flush() -> None:
    """Flush standard output; end the process like `write`."""
    try:
        if sys.stdout is not None:
            with _interruptible():
                sys.stdout.flush()
    except OSError as error:
        _exit_for_output(error)


def _write_error(text: str) -> None:
    try:
        if sys.stderr is not None:
            with _interruptible():
                sys.stderr.write(text)
                sys.stderr.flush()
    except OSError:
        # The exit code reports the failure too. Python would flush its buffer again at exit, fail, and change the exit code.
        sys.stderr = io.StringIO()


def exit_interrupted() -> NoReturn:
    """End the process with the code of SIGINT, after flushing what the readers take at once."""

    def flush() -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            _write_error("\n")  # ends the terminal's line, which shows ^C
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                if stream is not None:
                    stream.flush()

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    thread.join(_LAST_FLUSH)
    # A normal exit would flush again and could wait for a stuck reader for ever.
    os._exit(INTERRUPTED)


def honour_sigterm() -> None:
    """Make SIGTERM end this process even as process 1, for which the kernel ignores signals without a handler."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _exit_for_signal)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT end the process at once during a write: after an exception, Python would write the rest at exit."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not on_main_thread or before in {signal.SIG_IGN, None}:
        yield
        return
    signal.signal(signal.SIGINT, _exit_for_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exit_for_signal(number: int, frame: FrameType | None) -> None:
    del frame
    os._exit(_SIGNALLED + number)


def _exit_for_output(error: OSError) -> NoReturn:
    # Python would flush its buffer at exit and fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        sys.exit(_BROKEN_PIPE)
    print_error(f"standard output cannot be written: {error.strerror}")
    sys.exit(REFUSED)
