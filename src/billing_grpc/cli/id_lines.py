"""Read ids from a file in batches as they arrive, and show the progress."""

import os
import stat
import sys
from collections.abc import Iterator
from itertools import count, islice
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self

import click

from billing_grpc import validation
from billing_grpc.cli import exit_codes
from billing_grpc.errors import InvalidArgument

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

_NAMED: Final = 20
_COMMENT: Final = "#"


class IdLines:
    """The ids of a file, one a line; blank lines and comments are skipped.

    Args:
        file: read as a whole if it is a regular file; a pipe is read as its lines arrive.

    Attributes:
        total: how many lines hold text; `None` for a pipe.
        problems: a sentence for each of the first twenty malformed ids that were read.

    Raises:
        exit_codes.Failed: the file cannot be read; also while the batches of a pipe are read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.problems: list[str] = []
        self._bad = 0
        self._lines = _read(file)
        self.total: int | None = None
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            lines = list(self._lines)
            self._lines, self.total = iter(lines), sum(_text(each) != "" for each in lines)

    def batches(self, size: int) -> Iterator[list[str]]:
        """Yield the ids in order, in lists of at most `size`."""
        ids = self._ids()
        while batch := list(islice(ids, size)):
            yield batch

    def _ids(self) -> Iterator[str]:
        for number, each in enumerate(self._lines, start=1):
            if not (text := _text(each)):
                continue
            try:
                yield validation.workspace_id(text)
            except InvalidArgument as error:
                self._bad += 1
                if self._bad <= _NAMED:
                    self.problems.append(f"line {number}: {error.violations[0].description}")
        if self._bad > _NAMED:
            self.problems.append(f"and {self._bad - _NAMED} more lines with malformed ids")


class Progress:
    """A progress bar on standard error, shown if that is a terminal and standard output is not."""

    def __init__(self, total: int | None, label: str = "resolving") -> None:
        self._shown: ProgressBar[int] | None = None
        if sys.stderr.isatty() and not sys.stdout.isatty():
            self._shown = click.progressbar(
                count() if total is None else None, total, label=label, file=sys.stderr, show_pos=True
            )

    def __enter__(self) -> Self:
        if self._shown is not None:
            self._shown.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown is not None:
            self._shown.__exit__(kind, error, traceback)

    def advance(self, done: int) -> None:
        """Count `done` more ids as done."""
        if self._shown is not None:
            self._shown.update(done)


def text_lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that hold text, with their numbers; skip blank lines and comments.

    Raises:
        exit_codes.Failed: the file cannot be read.
    """
    for number, each in enumerate(_read(file), start=1):
        if text := _text(each):
            yield number, text


def _read(file: BinaryIO) -> Iterator[bytes]:
    try:
        yield from file
    except OSError as error:
        raise exit_codes.Failed(f"the ids cannot be read: {error.strerror}", exit_codes.USAGE) from error


def _text(line: bytes) -> str:
    text = line.decode("utf-8-sig", "replace").strip()
    return "" if text.startswith(_COMMENT) else text
