"""What a command shows: plain lines and tab-separated columns for scripts, colour and tables at a terminal."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click

from billing_grpc.cli import exit_codes
from billing_grpc.model import BillingMode, BillingModeSource, Resolution

STYLES: Final = {
    BillingMode.PLATFORM_MANAGED.value: "yellow",
    BillingMode.BYOK.value: "green",
    BillingMode.DISABLED.value: "cyan",
}
"""The colour of each mode."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""For a command's `as_json`."""


def is_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def json_line(value: Any) -> None:
    """One object on one line, in ASCII."""
    exit_codes.write(json.dumps(value) + "\n")


def line(*parts: tuple[str, str] | str) -> None:
    """One line of parts, each text or text with a style, which a terminal shows and nothing else."""
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    if not is_terminal():
        exit_codes.write("".join(exit_codes.printable(text) for text, _ in pairs) + "\n")
        return
    from billing_grpc.cli import terminal  # noqa: PLC0415 - a script need not wait until rich is loaded

    exit_codes.write(terminal.line((exit_codes.printable(text), style) for text, style in pairs))


def row(cells: Sequence[tuple[str, int]], style: str = "") -> None:
    """Cells of a table whose end is not known yet: each text with the width that a terminal gives it; tabs otherwise."""
    shown = [(exit_codes.printable(text), width) for text, width in cells]
    if is_terminal():
        line(("  ".join(text.ljust(width) for text, width in shown).rstrip(), style))
    else:
        exit_codes.write("\t".join(text for text, _ in shown) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, prose: frozenset[str] = frozenset()) -> None:
    """Rows under headings at a terminal; tab-separated without headings otherwise.

    Args:
        columns: the headings.
        rows: their cells.
        prose: the columns that may be broken into lines; the others never are.
    """
    shown = [[exit_codes.printable(cell) for cell in cells] for cells in rows]
    if not is_terminal():
        exit_codes.write("".join("\t".join(cells) + "\n" for cells in shown))
        return
    from billing_grpc.cli import terminal  # noqa: PLC0415 - a script need not wait until rich is loaded

    exit_codes.write(terminal.table(columns, shown, prose, STYLES))


def resolution(answer: Resolution) -> None:
    """A mode, its source, the sentence that says why, and the stored text where it is no mode, to find the row by."""
    line((answer.mode.value, STYLES[answer.mode.value]), f"  ({answer.source})")
    line(answer.reason)
    if answer.workspace_override is not None and answer.source is not BillingModeSource.WORKSPACE_OVERRIDE:
        line(f'It is stored as "{answer.workspace_override}".')
