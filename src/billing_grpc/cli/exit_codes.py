"""How a command ends, and what it may write: exit codes, complaints, and text that cannot take over a terminal."""

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

from billing_grpc.standing_reader import write_within

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3
INTERRUPTED: Final = 130
_SIGNALLED: Final = 128
_LAST_FLUSH: Final = 0.5
"""Seconds in which readers can take what is left when a command is interrupted."""
_STDERR: Final = 2
_BROKEN_PIPE: Final = 141
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


def open_missing_streams() -> None:
    """Puts in the place of a standard stream that was closed one that fails as it does; nothing we open takes its number."""
    for name, flags, mode in (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_RDONLY, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, errors="backslashreplace"))


def printable(text: str) -> str:
    """The text on one line, with an escape for every control, direction mark, line break and other invisible character.

    What is stored may come from anybody who can write to the database; a terminal must not act on it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def print_error(*lines: str) -> None:
    """Says on standard error what is wrong, if that can be written; further lines indented."""
    _write_error("billing-grpc: " + "\n  ".join(map(printable, lines)) + "\n")


def print_last_error(text: str) -> None:
    """Says why a server ends. Who restarts it waits for its end, so a reader who stands still is not waited for."""
    if sys.stderr is not None:
        write_within(_STDERR, f"billing-grpc: {printable(text)}\n".encode(errors="backslashreplace"))


def print_usage_error(error: click.ClickException) -> None:
    """Says what click has to say of an error, which may repeat what was given, whatever that holds."""
    said = io.StringIO()
    error.show(said)
    _write_error("".join(f"{printable(line)}\n" for line in said.getvalue().expandtabs().splitlines()))


def write(text: str) -> None:
    """Writes to standard output as it is, and ends the process quietly when nobody reads any more."""
    try:
        with _interruptible():
            sys.stdout.write(text)
    except OSError as error:
        _exit_for_output(error)


def flush() -> None:
    """What was written leaves; as `write`."""
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
        # The exit code says it too. What Python still holds would fail again, and be the exit code, when the process ends.
        sys.stderr = io.StringIO()


def exit_interrupted() -> NoReturn:
    """Ends the process as one that SIGINT ended, with what is written so far as far as its readers take it at once."""

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
    # An ordinary end would flush again, and wait for a reader who stands still, for ever.
    os._exit(INTERRUPTED)


def honour_sigterm() -> None:
    """Lets SIGTERM end this process also as the first of a container, which the kernel spares what it does not handle."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _exit_for_signal)


@contextmanager
def _interruptible() -> Iterator[None]:
    """While we write, SIGINT ends the process at once: an exception would leave text that Python writes at its end."""
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
    # What Python still holds would be written, and fail again, when the process ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        sys.exit(_BROKEN_PIPE)
    print_error(f"standard output cannot be written: {error.strerror}")
    sys.exit(REFUSED)
