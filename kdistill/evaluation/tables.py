"""Headers and rows of text as a table: for a terminal, as plain text, as Markdown."""

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

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
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, caption=escape("\n".join(notes)), caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    for number, row in enumerate(rows):
        table.add_row(*map(escape, row), style="bold" if number in bold else None)
    return table


def plain_table(columns: Sequence[str], rows: Cells, notes: Sequence[str], left: Collection[str]) -> str:
    """Return the same as plain text."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    sides = ["<" if column in left else ">" for column in columns]
    plain = ["  ".join(f"{c:{side}{w}}" for c, side, w in zip(line, sides, widths, strict=True)) for line in lines]
    rule = "-" * len(plain[0])
    return "\n".join([plain[0], rule, *plain[1:], rule, *notes])


def markdown_table(columns: Sequence[str], rows: Cells, notes: Sequence[str], left: Collection[str]) -> str:
    """Return the same as Markdown, the notes as a list."""
    rule = ["---" if column in left else "---:" for column in columns]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in (columns, rule, *rows)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])
