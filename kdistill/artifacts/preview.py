"""The preview: every class one row of its images, laid out to fill a page rather than a strip."""

from dataclasses import dataclass
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdistill.escape import one_line

if TYPE_CHECKING:
    from kdistill.artifacts.dataset import DistilledDataset

PAGE = (1840, 1600)  # pixels; larger sets get smaller tiles first, then a taller page
SHAPE = 1.2  # width over height that is aimed at
TILE = 100  # pixels at most; small images are enlarged by whole factors
MAX_CLASSES, MAX_TILES = 200, 2000  # more are left out, and the picture says so
MARGIN, GAP, ROW_GAP, COLUMN_GAP, LABEL_GAP = 28, 2, 6, 30, 10
PAPER, INK, SOFT_INK = (255, 255, 255), (38, 40, 46), (122, 126, 136)
LABEL_WIDTH = 150  # pixels at most; longer names end in an ellipsis
LABEL_CHARACTERS = 200  # of a name that are looked at: more than fit into the width
HEADING_CHARACTERS = 60  # of each part of the heading


@dataclass(frozen=True)
class _Layout:
    """Where things stand: pixels, except the counts."""

    tile: tuple[int, int]
    per_line: int
    lines: int
    columns: int
    rows: int
    label: int
    head: int

    @property
    def block(self) -> tuple[int, int]:
        """Size of one class: label and images."""
        width = self.label + LABEL_GAP + self.per_line * (self.tile[0] + GAP) - GAP
        return width, self.lines * (self.tile[1] + GAP) - GAP

    @property
    def row_gap(self) -> int:
        return ROW_GAP if self.lines == 1 else 3 * ROW_GAP

    @property
    def page(self) -> tuple[int, int]:
        width, height = self.block
        return (
            2 * MARGIN + self.columns * (width + COLUMN_GAP) - COLUMN_GAP,
            2 * MARGIN + self.head + self.rows * (height + self.row_gap) - self.row_gap,
        )


def preview(small: "DistilledDataset") -> Image.Image:
    """Return the class × IPC grid as RGB.

    Images are clipped to [0, 1]; small ones are enlarged without smoothing, large ones reduced.  Of
    more than three channels the first three are shown, of two the first.  The picture is a pure
    function of the set.
    """
    shown = list(range(min(small.num_classes, MAX_CLASSES)))
    per_class = max(1, min(small.ipc, MAX_TILES // len(shown)))
    rows = [(small.labels == label).nonzero()[:per_class, 0] for label in shown]
    notes = []
    if len(shown) < small.num_classes:
        notes.append(f"the first {len(shown)} of {small.num_classes} classes")
    if per_class < small.ipc:
        notes.append(f"the first {per_class} of {small.ipc} images of each class")
    font, head_font = ImageFont.load_default(14), ImageFont.load_default(20)
    names = [shortened(small.classes[label], font) for label in shown]
    layout = _layout(
        (small.images.shape[2], small.images.shape[3]),
        len(shown),
        per_class,
        ceil(max(font.getlength(name) for name in names)),
    )
    heading, note = _headline(small), ("shown: " + ", ".join(notes) if notes else "")
    width = max(
        layout.page[0], 2 * MARGIN + ceil(max(head_font.getlength(heading), font.getlength(note)))
    )
    picture = Image.new("RGB", (width, layout.page[1] + (24 if note else 0)), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 6), heading, INK, head_font)
    if note:
        draw.text((MARGIN, picture.height - MARGIN), note, SOFT_INK, font, anchor="ls")
    for index, (name, members) in enumerate(zip(names, rows, strict=True)):
        left = MARGIN + index // layout.rows * (layout.block[0] + COLUMN_GAP)
        top = MARGIN + layout.head + index % layout.rows * (layout.block[1] + layout.row_gap)
        draw.text(
            (left + layout.label, top + layout.tile[1] / 2), name, SOFT_INK, font, anchor="rm"
        )
        _paste(picture, small.images[members], layout, left + layout.label + LABEL_GAP, top)
    return picture


def png_bytes(small: "DistilledDataset") -> bytes:
    """Return the preview as the bytes of a PNG file."""
    buffer = BytesIO()
    preview(small).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def to_uint8(images: Tensor) -> np.ndarray:
    """Return ``[N, C, H, W]`` in pixel space as uint8 ``[N, H, W, C]``: clipped to [0, 1] and rounded."""
    levels = (images.detach().cpu().clamp(0.0, 1.0) * 255.0).round()
    return levels.byte().permute(0, 2, 3, 1).contiguous().numpy()


def _headline(small: "DistilledDataset") -> str:
    source, run = small.config.get("source"), small.config.get("run")
    name = source.get("name") if isinstance(source, dict) else None
    method = run.get("method") if isinstance(run, dict) else None
    images = "1 image per class" if small.ipc == 1 else f"{small.ipc} images per class"
    return "  ·  ".join(
        one_line(part, HEADING_CHARACTERS) for part in (name, method, images) if part
    )


def shortened(
    name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int = LABEL_WIDTH
) -> str:
    """Return ``name`` on one line, at most ``width`` pixels wide."""
    name = one_line(name, LABEL_CHARACTERS)  # measuring takes time in proportion to the length
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "…") > width:
        name = name[:-1]
    return name.rstrip() + "…"


def _layout(size: tuple[int, int], classes: int, per_class: int, label: int) -> _Layout:
    """Return the layout with large tiles and a well-shaped, full page; if nothing fits, the smallest tiles on a tall page."""
    fitting: list[_Layout] = []
    for tile in _tile_sizes(size):
        candidates = _candidates(tile, classes, per_class, label)
        fitting += [
            layout
            for layout in candidates
            if layout.page[0] <= PAGE[0] and layout.page[1] <= PAGE[1]
        ]
    if not fitting:
        fitting = [layout for layout in candidates if layout.page[0] <= PAGE[0]] or candidates
    largest = max(layout.tile for layout in fitting)[0]
    return min(fitting, key=lambda layout: _penalty(layout, classes, largest))


def _candidates(tile: tuple[int, int], classes: int, per_class: int, label: int) -> list[_Layout]:
    # whole last lines and last columns only: a ragged end looks like missing images
    lines = [n for n in range(1, min(per_class, 10) + 1) if per_class % n == 0]
    shapes = [(columns, ceil(classes / columns)) for columns in range(1, min(classes, 12) + 1)]
    full = [(columns, rows) for columns, rows in shapes if ceil(classes / rows) == columns]
    return [
        _Layout(tile, per_class // n, n, columns, rows, label, head=40)
        for n in lines
        for columns, rows in full
    ]


def _penalty(layout: _Layout, classes: int, largest: int) -> float:
    """Return how far a layout is from large tiles on a well-shaped full page with one line per class."""
    ratio = layout.page[0] / layout.page[1]
    empty = layout.columns * layout.rows - classes
    smaller = largest / layout.tile[0] - 1.0
    return (
        max(ratio / SHAPE, SHAPE / ratio)
        + 0.15 * (layout.lines - 1)
        + 10.0 * empty / classes
        + 0.8 * smaller
    )


def _tile_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return tile sizes (width, height), largest first: whole multiples of the image, or reductions of a large one."""
    height, width = size
    side = max(size)
    if side <= TILE:
        return [(width * factor, height * factor) for factor in range(TILE // side, 0, -1)]
    return [
        (max(1, round(width * t / side)), max(1, round(height * t / side)))
        for t in (TILE, 80, 64, 48, 32)
    ]


def _paste(picture: Image.Image, images: Tensor, layout: _Layout, left: int, top: int) -> None:
    pixels = to_uint8(images[:, :3] if images.shape[1] >= 3 else images[:, :1])
    for i, array in enumerate(pixels):
        tile = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
        larger = layout.tile[0] >= tile.width
        tile = tile.resize(
            layout.tile, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
        )
        line, place = divmod(i, layout.per_line)
        picture.paste(
            tile, (left + place * (layout.tile[0] + GAP), top + line * (layout.tile[1] + GAP))
        )
