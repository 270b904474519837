"""Grids of images: the preview of a set, and the filmstrip of a search."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from torch import Tensor

from kdistill.artifacts.drawing import (
    GAP,
    HEAD,
    INK,
    MARGIN,
    POINTS,
    SOFT_INK,
    Page,
    font,
    shortened,
    tile_size,
)
from kdistill.escape import one_line

PAGE = (1840, 1600)  # pixels; larger sets get smaller tiles first, then a taller page
SHAPE = 1.2  # width over height that is aimed at
TILE = 100  # pixels at most; small images are enlarged by whole factors
MAX_CLASSES, MAX_TILES = 200, 2000  # more are left out, and the picture says so
ROW_GAP, COLUMN_GAP, LABEL_GAP = 6, 30, 10
PART_CHARACTERS = 60  # of each part of the heading
STRIP_WIDTH, STRIP_TILE, STRIP_LABEL = 1400, 96, 190  # pixels at most; label: name and note
STRIP_CLASSES = 40  # more are left out
CHOSEN = (196, 78, 30)


@dataclass(frozen=True)
class _Layout:
    """Where things stand: pixels, except the counts."""

    tile: tuple[int, int]
    per_line: int
    lines: int
    columns: int
    rows: int
    label: int

    @property
    def step(self) -> tuple[int, int]:
        """From the block of one class (label and images) to the next, to the right and down."""
        width = self.label + LABEL_GAP + self.per_line * (self.tile[0] + GAP) - GAP
        height = self.lines * (self.tile[1] + GAP) - GAP
        return width + COLUMN_GAP, height + (ROW_GAP if self.lines == 1 else 3 * ROW_GAP)

    @property
    def page(self) -> tuple[int, int]:
        right, down = self.step
        return (
            2 * MARGIN + self.columns * right - COLUMN_GAP,
            2 * MARGIN + HEAD + self.rows * down - (ROW_GAP if self.lines == 1 else 3 * ROW_GAP),
        )


def preview(
    images: Tensor, labels: Tensor, classes: Sequence[str], heading: Sequence[object] = ()
) -> Page:
    """Return the class × IPC grid, a pure function of its arguments.

    Args:
        images: ``[N, C, H, W]`` in pixel space.
        labels: Class of each image, int64 ``[N]``.
        classes: Names.
        heading: Parts of the heading, in front of the images per class; empty ones are left out.
    """
    shown = range(min(len(classes), MAX_CLASSES))
    ipc = int(labels.bincount().max())
    per_class = max(1, min(ipc, MAX_TILES // len(shown)))
    notes = []
    if len(shown) < len(classes):
        notes.append(f"the first {len(shown)} of {len(classes)} classes")
    if per_class < ipc:
        notes.append(f"the first {per_class} of {ipc} images of each class")
    names = [shortened(classes[label], font(POINTS)) for label in shown]
    label_width = ceil(max(map(font(POINTS).getlength, names)))
    layout = _layout(images.shape, len(shown), per_class, label_width)
    parts = (*heading, "1 image per class" if ipc == 1 else f"{ipc} images per class")
    title = [one_line(part, PART_CHARACTERS) for part in parts if part]
    page = Page(layout.page[0], layout.page[1] + (24 if notes else 0), *title)
    if notes:
        text = "shown: " + ", ".join(notes)
        page.text((MARGIN, page.picture.height - MARGIN), text, anchor="ls")
    for label, name in enumerate(names):
        column, row = divmod(label, layout.rows)
        left = MARGIN + column * layout.step[0] + layout.label
        top = MARGIN + HEAD + row * layout.step[1]
        page.text((left, top + layout.tile[1] / 2), name, SOFT_INK, anchor="rm")
        members = (labels == label).nonzero()[:per_class, 0]
        corner = (left + LABEL_GAP, top)
        page.tiles(images[members], corner, layout.tile, per_line=layout.per_line)
    return page


def _layout(shape: Sequence[int], classes: int, per_class: int, label: int) -> _Layout:
    """Return the layout with large tiles and a well-shaped, full page.

    If nothing fits, the smallest tiles stand on a tall page.
    """
    # whole last lines and last columns only: a ragged end looks like missing images
    lines = [n for n in range(1, min(per_class, 10) + 1) if per_class % n == 0]
    grids = [(columns, ceil(classes / columns)) for columns in range(1, min(classes, 12) + 1)]
    tiles = _tile_sizes(shape)
    layouts = [
        _Layout(tile, per_class // n, n, columns, rows, label)
        for tile in tiles
        for n in lines
        for columns, rows in grids
        if ceil(classes / rows) == columns
    ]
    fitting = [x for x in layouts if x.page[0] <= PAGE[0] and x.page[1] <= PAGE[1]]
    if not fitting:
        smallest = [x for x in layouts if x.tile == tiles[-1]]
        fitting = [x for x in smallest if x.page[0] <= PAGE[0]] or smallest
    largest = max(layout.tile for layout in fitting)[0]
    return min(fitting, key=lambda layout: _penalty(layout, classes, largest))


def _penalty(layout: _Layout, classes: int, largest: int) -> float:
    """Return how far a layout is from large tiles, a full page and one line per class."""
    ratio = layout.page[0] / layout.page[1]
    empty = layout.columns * layout.rows - classes
    smaller = largest / layout.tile[0] - 1.0
    return (
        max(ratio / SHAPE, SHAPE / ratio)
        + 0.15 * (layout.lines - 1)
        + 10.0 * empty / classes
        + 0.8 * smaller
    )


def _tile_sizes(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Return tile sizes (width, height), the largest first."""
    side = max(shape[-2:])
    sides = range(TILE - TILE % side, 0, -side) if side <= TILE else (TILE, 80, 64, 48, 32)
    return [tile_size(shape, most) for most in sides]


@dataclass(frozen=True)
class Frame:
    """One row of the filmstrip.

    Attributes:
        name: Name of the stage.
        note: Text below the name, such as the distance of the stage.
        images: Images of all classes, ``[M, C, H, W]`` in pixel space.
        is_chosen: Whether the row is marked as the chosen one.
    """

    name: str
    note: str
    images: Tensor
    is_chosen: bool = False


def filmstrip(frames: Sequence[Frame], labels: Tensor, heading: str) -> bytes:
    """Return a PNG file: the first image of each class in columns, stages from top to bottom.

    Args:
        frames: At least one; images of all have the same shape.
        labels: Class of each image, int64 ``[M]``.
        heading: Text above the rows.
    """
    classes = labels.unique().tolist()[:STRIP_CLASSES]
    first = [int((labels == label).nonzero()[0]) for label in classes]
    most = min(STRIP_TILE, (STRIP_WIDTH - 2 * MARGIN - STRIP_LABEL) // len(first) - GAP)
    width, height = tile_size(frames[0].images.shape, most)
    step = max(height, 34) + 3 * GAP
    left, strip = MARGIN + STRIP_LABEL, len(first) * (width + GAP)
    page = Page(left + strip + MARGIN, 2 * MARGIN + HEAD + step * len(frames), heading)
    for row, frame in enumerate(frames):
        top = MARGIN + HEAD + row * step
        name, colour = frame.name, INK
        if frame.is_chosen:
            name, colour = f"{frame.name}  chosen", CHOSEN
        page.text((MARGIN, top + height / 2 - 9), name, colour, 15, "lm")
        page.text((MARGIN, top + height / 2 + 10), frame.note, points=13, anchor="lm")
        page.tiles(frame.images[first], (left, top), (width, height))
        if frame.is_chosen:
            box = (left - 2, top - 2, left + strip - GAP + 1, top + height + 1)
            page.pen.rectangle(box, outline=CHOSEN, width=2)
    return page.png()
