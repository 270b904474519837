"""Durations, and tables of text: for a terminal, as plain text, as Markdown.

Cells and notes may hold names out of files: they are escaped here (``kdistill.escape``), and never
read as markup.
"""

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from kdistill.escape import markdown, one_line

Cells = Sequence[Sequence[str]]

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


def console() -> Console:
    """Return a console on standard output."""
    return Console()


def rich_table(
    columns: Sequence[str],
    rows: Cells,
    notes: Sequence[str],
    left: Collection[str],
    bold: Collection[int] = (),
    *,
    width: int | None = None,
    optional: Sequence[str] = (),
    naming: Collection[str] = (),
) -> Group:
    """Return a table for a terminal with the notes below.

    Args:
        columns: Headers.
        rows: Text, one list per row.
        notes: One sentence each.
        left: Columns of words; the others are aligned to the right.
        bold: Numbers of the rows that are to stand out.
        width: Characters of a line that the table must keep to; None shows all columns.
        optional: Columns that may be left out where the width is too small, the least important
            first.
        naming: Columns of numbers that belong to the name of a line, which is repeated where a
            table is divided.
    """
    parts, notes = _fitted(columns, rows, notes, {*left, *naming}, width, optional)
    tables = []
    for headers, lines in parts:
        table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        for header in headers:
            table.add_column(Text(header), justify="left" if header in left else "right")
        for number, line in enumerate(lines):
            table.add_row(*map(Text, line), style="bold" if number in bold else None)
        tables.append(table)
    return Group(*tables, *(Text(note) for note in notes))


def plain_table(
    columns: Sequence[str],
    rows: Cells,
    notes: Sequence[str],
    left: Collection[str],
    *,
    width: int | None = None,
    optional: Sequence[str] = (),
    naming: Collection[str] = (),
) -> str:
    """Return the same as plain text."""
    parts, notes = _fitted(columns, rows, notes, {*left, *naming}, width, optional)
    text = []
    for headers, lines in parts:
        widths = _widths([headers, *lines])
        plain = [
            (" " * GAP)
            .join(_padded(c, w, h in left) for c, w, h in zip(line, widths, headers, strict=True))
            .rstrip()
            for line in (headers, *lines)
        ]
        rule = "-" * (sum(widths) + GAP * (len(widths) - 1))
        text += [plain[0], rule, *plain[1:], rule]
    return "\n".join([*text, *notes])


def _fitted(
    columns: Sequence[str],
    rows: Cells,
    notes: Sequence[str],
    naming: Collection[str],
    width: int | None,
    optional: Sequence[str],
) -> tuple[list[tuple[list[str], list[list[str]]]], list[str]]:
    """Return the table in parts that keep to the width, and the notes; everything harmless to print.

    Optional columns are left out first, and a note says which; what is still too wide is divided.
    Every part begins with the first columns, those that name a line; a cell that does not fit keeps
    its beginning and its end.
    """
    lines = [[one_line(cell) for cell in line] for line in (columns, *rows)]
    said = [one_line(note) for note in notes]
    if width is None:
        return [(lines[0], lines[1:])], said
    shown, missing = list(range(len(columns))), []
    for name in optional:
        if _total(_widths(lines), shown) <= width:
            break
        if name in columns:
            shown.remove(list(columns).index(name))
            missing.append(name)
    if missing:
        said.append(f"left out for lack of width: {', '.join(missing)}")
    names = max(
        1, next((i for i, column in enumerate(columns) if column not in naming), len(columns))
    )
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
    ], said


def _shortened(
    lines: list[list[str]], names: int, others: Sequence[int], width: int
) -> list[list[str]]:
    """Return the lines with cells cut so that the columns of names and any one of the other columns fit in the width."""
    widths, limits = _widths(lines), {}
    for i in others:  # at least half of the line is for the names
        limits[i] = min(widths[i], max(1, width // 2 - GAP))
    left_over = width - max((limits[i] + GAP for i in others), default=0) - GAP * (names - 1)
    for done, i in enumerate(
        sorted(range(names), key=lambda i: widths[i])
    ):  # what short columns leave goes to the long ones
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


def markdown_table(
    columns: Sequence[str], rows: Cells, notes: Sequence[str], left: Collection[str]
) -> str:
    """Return the same as Markdown, the notes as a list."""
    rule = ["---" if column in left else "---:" for column in columns]
    lines = [
        f"| {' | '.join(line)} |"
        for line in (list(map(markdown, columns)), rule, *(map(markdown, row) for row in rows))
    ]
    return "\n".join([*lines, "", *(f"- {markdown(note)}" for note in notes), ""])
