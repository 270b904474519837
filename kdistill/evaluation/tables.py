"""Headers and rows of text as a table: for a terminal, as plain text, as Markdown.

Cells and notes may hold names out of files: they are escaped here (``kdistill.escape``), and never read as markup.
"""

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from kdistill.escape import markdown, one_line

Cells = Sequence[Sequence[str]]


def rich_table(
    columns: Sequence[str], rows: Cells, notes: Sequence[str], left: Collection[str], bold: Collection[int] = ()
) -> Table:
    """Return a table for a terminal with the notes below.

    Args:
        columns: Headers.
        rows: Text, one list per row.
        notes: One sentence each.
        left: Columns of words; the others are aligned to the right.
        bold: Numbers of the rows that are to stand out.
    """
    table = Table(
        box=SIMPLE_HEAD, padding=0, pad_edge=False, caption=Text("\n".join(map(one_line, notes))), caption_justify="left"
    )
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    for number, row in enumerate(rows):
        table.add_row(*(Text(one_line(cell)) for cell in row), style="bold" if number in bold else None)
    return table


def plain_table(columns: Sequence[str], rows: Cells, notes: Sequence[str], left: Collection[str]) -> str:
    """Return the same as plain text."""
    lines = [[one_line(cell) for cell in line] for line in (columns, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    sides = ["<" if column in left else ">" for column in columns]
    plain = ["  ".join(f"{c:{side}{w}}" for c, side, w in zip(line, sides, widths, strict=True)) for line in lines]
    rule = "-" * len(plain[0])
    return "\n".join([plain[0], rule, *plain[1:], rule, *map(one_line, notes)])


def markdown_table(columns: Sequence[str], rows: Cells, notes: Sequence[str], left: Collection[str]) -> str:
    """Return the same as Markdown, the notes as a list."""
    rule = ["---" if column in left else "---:" for column in columns]
    lines = [f"| {' | '.join(line)} |" for line in (list(map(markdown, columns)), rule, *(map(markdown, row) for row in rows))]
    return "\n".join([*lines, "", *(f"- {markdown(note)}" for note in notes), ""])
