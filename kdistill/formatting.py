"""Durations, and tables of text: for a terminal, as plain text, as Markdown.

Cells and notes may hold names out of files: they are escaped here (``kdistill.escape``), and never
read as markup.
"""

import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from kdistill.escape import markdown, one_line

T = TypeVar("T")
Cells = Sequence[Sequence[str]]
Part = tuple[list[str], list[list[str]]]  # headers and rows of a table, or of a part of one

GAP = 2  # blanks between two columns


def duration(seconds: float) -> str:
    """Return ``1:02:03`` or ``2:03``."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def byte_count(nbytes: float) -> str:
    """Return a number of bytes in kB, MB or GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{int(nbytes)} B"


def wrapped(text: str, indent: int = 0, first: str = "") -> list[str]:
    """Return ``text`` in lines of at most 80 characters; words and paths stay whole.

    Args:
        text: One paragraph.
        indent: Blanks before every line.
        first: What the first line begins with instead, and a blank.
    """
    return textwrap.wrap(
        text,
        80,
        initial_indent=f"{first} " if first else " " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def console() -> Console:
    """Return a console on standard output."""
    return Console()


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of text with notes below.

    Attributes:
        columns: Headers.
        rows: Text, one list per row.
        notes: One sentence each.
        left: Columns of words; the others are aligned to the right.
        bold: Numbers of the rows that are to stand out in a terminal.
        optional: Columns that may be left out where a line is too short, the least important first.
        naming: Columns of numbers that belong to the name of a line, which is repeated where a
            table is divided.
    """

    columns: Sequence[str]
    rows: Cells
    notes: Sequence[str] = ()
    left: Collection[str] = ()
    bold: Collection[int] = ()
    optional: Sequence[str] = ()
    naming: Collection[str] = ()

    def rich(self, width: int | None = None) -> Group:
        """Return the table for a terminal of that many characters; None shows all columns."""
        parts, notes = self._fitted(width)
        tables = []
        for headers, lines in parts:
            table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
            for header in headers:
                table.add_column(Text(header), justify="left" if header in self.left else "right")
            for number, line in enumerate(lines):
                table.add_row(*map(Text, line), style="bold" if number in self.bold else None)
            tables.append(table)
        return Group(*tables, *map(Text, notes))

    def plain(self, width: int | None = None) -> str:
        """Return the same as plain text."""
        parts, notes = self._fitted(width)
        text = []
        for headers, lines in parts:
            widths = _widths([headers, *lines])
            plain = [
                (" " * GAP)
                .join(
                    _padded(cell, space, header in self.left)
                    for cell, space, header in zip(line, widths, headers, strict=True)
                )
                .rstrip()
                for line in (headers, *lines)
            ]
            rule = "-" * (sum(widths) + GAP * (len(widths) - 1))
            text += [plain[0], rule, *plain[1:], rule]
        return "\n".join([*text, *notes])

    def markdown(self) -> str:
        """Return the same as Markdown, the notes as a list."""
        rule = ["---" if column in self.left else "---:" for column in self.columns]
        cells = [[markdown(cell) for cell in line] for line in (self.columns, *self.rows)]
        lines = [f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:])]
        return "\n".join([*lines, "", *(f"- {markdown(note)}" for note in self.notes), ""])

    def _fitted(self, width: int | None) -> tuple[list[Part], list[str]]:
        """Return the table in parts that keep to the width, and the notes; all harmless to print.

        Optional columns are left out first, and a note says which; what is still too wide is
        divided.  Every part begins with the first columns, those that name a line; a cell that does
        not fit keeps its beginning and its end.
        """
        columns = list(self.columns)
        lines = [[one_line(cell) for cell in line] for line in (columns, *self.rows)]
        notes = [one_line(note) for note in self.notes]
        if width is None:
            return [(lines[0], lines[1:])], notes
        shown, missing = list(range(len(columns))), []
        for name in self.optional:
            if _total(_widths(lines), shown) <= width:
                break
            if name in columns:
                shown.remove(columns.index(name))
                missing.append(name)
        if missing:
            notes.append(f"left out for lack of width: {', '.join(missing)}")
        is_name = [column in (*self.left, *self.naming) for column in columns]
        names = max(1, [*is_name, False].index(False))
        if _total(_widths(lines), shown) > width:
            lines = _shortened(lines, names, [i for i in shown if i >= names], width)
        widths, first = _widths(lines), [i for i in shown if i < names]
        groups = [list(first)]
        for column in shown[len(first) :]:
            if len(groups[-1]) > len(first) and _total(widths, [*groups[-1], column]) > width:
                groups.append(list(first))
            groups[-1].append(column)
        return [
            ([lines[0][i] for i in group], [[line[i] for i in group] for line in lines[1:]])
            for group in groups
        ], notes


class Tabular:
    """A result that is shown as tables; ``print`` shows them as plain text of 80 columns."""

    def tables(self) -> list[TextTable]:
        """Return the tables, the main one first."""
        raise NotImplementedError

    def table(self, width: int | None = None) -> Group:
        """Return the tables for a terminal of that many characters; None shows all columns.

        Columns that do not fit are left out and named.
        """
        parts = [part for table in self.tables() for part in ("", table.rich(width))]
        return Group(*parts[1:])

    def to_text(self, width: int | None = None) -> str:
        """Return the tables as plain text; None leaves no column out, for files and pipes."""
        return "\n\n".join(table.plain(width) for table in self.tables())

    def __str__(self) -> str:
        return self.to_text(80)


def cells_of(entries: Iterable[T], columns: Mapping[str, Callable[[T], str]]) -> list[list[str]]:
    """Return the text of every column for every entry."""
    return [[text(entry) for text in columns.values()] for entry in entries]


def _shortened(
    lines: list[list[str]], names: int, others: Sequence[int], width: int
) -> list[list[str]]:
    """Return the lines with cells cut so that the names and any one other column fit the width."""
    widths, limits = _widths(lines), {}
    for i in others:  # at least half of the line is for the names
        limits[i] = min(widths[i], max(1, width // 2 - GAP))
    left_over = width - max((limits[i] + GAP for i in others), default=0) - GAP * (names - 1)
    # what short columns leave goes to the long ones
    for done, i in enumerate(sorted(range(names), key=lambda i: widths[i])):
        limits[i] = min(widths[i], max(1, left_over // (names - done)))
        left_over -= limits[i]
    return [[_cut(cell, limits.get(i, widths[i])) for i, cell in enumerate(line)] for line in lines]


def _cut(cell: str, width: int) -> str:
    """Return the beginning and the end of a cell that is wider than ``width``."""
    if cell_len(cell) <= width:
        return cell
    end = (width - 1) // 2
    start, ending = width - 1 - end, cell[len(cell) - end :]
    while cell_len(ending) > end:  # characters of two columns
        ending = ending[1:]
    return f"{set_cell_size(cell, start)}…{ending}"


def _widths(lines: Cells) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[i] for i in shown) + GAP * (len(shown) - 1)


def _padded(cell: str, width: int, to_left: bool) -> str:
    blanks = " " * (width - cell_len(cell))
    return cell + blanks if to_left else blanks + cell
