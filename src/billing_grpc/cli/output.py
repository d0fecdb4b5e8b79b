"""Print what a command shows: plain lines and tab-separated columns for scripts, colour and tables at a terminal.

`rich` is loaded only for a terminal: a script does not wait for it (tests/e2e/test_cli_start.py).
"""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from billing_grpc.cli import exit_codes
from billing_grpc.model import BillingMode, BillingModeSource, Resolution

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STYLES: Final = {
    BillingMode.PLATFORM_MANAGED.value: "yellow",
    BillingMode.BYOK.value: "green",
    BillingMode.DISABLED.value: "cyan",
}
"""The colour of each mode."""

_GAP: Final = 2
_MIN_PROSE_WIDTH: Final = 24
"""A column of prose is not made narrower than this; a narrower terminal breaks the lines itself."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""The option that sets a command's `as_json`."""


def is_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()


def json_line(value: Any) -> None:
    """Print one object on one line, in ASCII."""
    exit_codes.write(json.dumps(value) + "\n")


def line(*parts: tuple[str, str] | str) -> None:
    """Print one line of parts, each a text or a text with its style. Only a terminal shows styles."""
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    shown = [(exit_codes.printable(text), style) for text, style in pairs]
    if is_terminal():
        exit_codes.write(_styled_line(shown))
    else:
        exit_codes.write("".join(text for text, _ in shown) + "\n")


def row(cells: Sequence[tuple[str, int]], style: str = "") -> None:
    """Print one row of a table that is still growing: padded at a terminal, tab-separated otherwise.

    Args:
        cells: each text and its width at a terminal.
        style: the style of the whole row at a terminal.
    """
    shown = [(exit_codes.printable(text), width) for text, width in cells]
    if is_terminal():
        line(("  ".join(text.ljust(width) for text, width in shown).rstrip(), style))
    else:
        exit_codes.write("\t".join(text for text, _ in shown) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, prose: frozenset[str] = frozenset()) -> None:
    """Print rows under headings at a terminal; tab-separated and without headings otherwise.

    Args:
        columns: the headings.
        rows: their cells.
        prose: the columns whose cells may be folded; all other cells stay whole.
    """
    shown = [[exit_codes.printable(cell) for cell in cells] for cells in rows]
    if is_terminal():
        exit_codes.write(_styled_table(columns, shown, prose))
    else:
        exit_codes.write("".join("\t".join(cells) + "\n" for cells in shown))


def resolution(answer: Resolution) -> None:
    """Print a mode, its source and the reason; also the stored text if it is not a mode, so that the row can be found."""
    line((answer.mode.value, STYLES[answer.mode.value]), f"  ({answer.source})")
    line(answer.reason)
    if answer.workspace_override is not None and answer.source is not BillingModeSource.WORKSPACE_OVERRIDE:
        line(f'It is stored as "{answer.workspace_override}".')


def _styled_line(parts: Iterable[tuple[str, str]]) -> str:
    """Return one line, in colour unless NO_COLOR forbids it; it is not broken at the terminal's width."""
    from rich.console import Console
    from rich.text import Text

    return _rendered(Console(highlight=False), Text.assemble(*parts), soft_wrap=True)


def _styled_table(columns: Sequence[str], rows: Sequence[Sequence[str]], prose: frozenset[str]) -> str:
    """Return a table as wide as the terminal. On a narrow one, only the columns of `prose` are folded."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    heading = "" if console.no_color else "bold"
    made = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style=heading)
    for name in columns:
        if name in prose:
            made.add_column(name, overflow="fold", min_width=_MIN_PROSE_WIDTH)
        else:
            made.add_column(name, no_wrap=True)
    for cells in rows:
        made.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in cells))
    for position, name in enumerate(columns):
        if name not in prose:
            widths = [cell_len(cells[position]) for cells in rows]
            made.columns[position].min_width = max([len(name), *widths])
    unlimited = console.options.update(max_width=10_000)
    least = sum(column.min_width or 0 for column in made.columns) + _GAP * len(columns)
    wanted = Measurement.get(console, unlimited, made).maximum
    console.width = min(max(console.width, least), max(wanted, least))
    return "".join(f"{each.rstrip()}\n" for each in _rendered(console, made).splitlines())


def _rendered(console: "Console", content: "RenderableType", *, soft_wrap: bool = False) -> str:
    with console.capture() as captured:
        console.print(content, soft_wrap=soft_wrap)
    return captured.get()
