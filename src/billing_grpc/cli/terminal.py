"""Text for a terminal, in colour where it has any and NO_COLOR does not forbid it, as wide as it is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_GAP: Final = 2
_LEAST_PROSE: Final = 24
"""A column of prose is not squeezed below this; a terminal that is too narrow shows lines that it breaks itself."""


def line(parts: Iterable[tuple[str, str]]) -> str:
    """One line; never broken here."""
    return _rendered(Console(highlight=False), Text.assemble(*parts), soft_wrap=True)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], prose: frozenset[str], styles: Mapping[str, str]
) -> str:
    """A table whose cells are whole, however narrow the terminal, those of `prose` aside, which are folded."""
    console = Console(highlight=False)
    heading = "" if console.no_color else "bold"
    made = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style=heading)
    for name in columns:
        if name in prose:
            made.add_column(name, overflow="fold", min_width=_LEAST_PROSE)
        else:
            made.add_column(name, no_wrap=True)
    for cells in rows:
        made.add_row(*(Text(cell, styles.get(cell, "")) for cell in cells))
    for position, name in enumerate(columns):
        if name not in prose:
            widths = [cell_len(cells[position]) for cells in rows]
            made.columns[position].min_width = max([len(name), *widths])
    unlimited = console.options.update(max_width=10_000)
    least = sum(column.min_width or 0 for column in made.columns) + _GAP * len(columns)
    wanted = Measurement.get(console, unlimited, made).maximum
    console.width = min(max(console.width, least), max(wanted, least))
    return "".join(f"{each.rstrip()}\n" for each in _rendered(console, made).splitlines())


def _rendered(console: Console, what: RenderableType, *, soft_wrap: bool = False) -> str:
    with console.capture() as captured:
        console.print(what, soft_wrap=soft_wrap)
    return captured.get()
