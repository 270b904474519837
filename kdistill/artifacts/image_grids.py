"""Grids of images: the page they are drawn on, the preview of a set, the filmstrip of a search."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdistill.escape import one_line

MARGIN, GAP, HEAD = 28, 2, 40  # pixels: around a page, between two tiles, for the heading
PAPER, INK, SOFT_INK = (255, 255, 255), (38, 40, 46), (122, 126, 136)
LABEL_WIDTH = 150  # pixels at most; longer names end in an ellipsis
LABEL_CHARACTERS = 200  # read of a name: more than fit into the width
HEADING_CHARACTERS = 100  # of each part
CAPTION_POINTS, POINTS, HEADING_POINTS = 11, 14, 20

# of the preview
PAGE = (1840, 1600)  # pixels; larger sets get smaller tiles first, then a taller page
SHAPE = 1.2  # width over height that is aimed at
TILE = 100  # pixels at most; small images are enlarged by whole factors
MAX_CLASSES, MAX_TILES = 200, 2000  # more are left out, and the picture says so
ROW_GAP, COLUMN_GAP, LABEL_GAP = 6, 30, 10
PART_CHARACTERS = 60  # of each part of the heading

# of the filmstrip
STRIP_WIDTH, STRIP_TILE, STRIP_LABEL = 1400, 96, 190  # pixels at most; label: name and note
STRIP_CLASSES = 40  # more are left out
CHOSEN = (196, 78, 30)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]


class Page:
    """A white page with a heading, wide enough for it.

    Args:
        width: Pixels at least.
        height: Pixels.
        parts: Parts of the heading, on one line.
    """

    def __init__(self, width: int, height: int, *parts: object):
        heading = "  ·  ".join(one_line(part, HEADING_CHARACTERS) for part in parts)
        needed = 2 * MARGIN + ceil(font(HEADING_POINTS).getlength(heading))
        self.picture = Image.new("RGB", (max(width, needed), height), PAPER)
        self.pen = ImageDraw.Draw(self.picture)
        self.text((MARGIN, MARGIN - 6), heading, INK, HEADING_POINTS)

    def text(
        self,
        at: tuple[float, float],
        text: str,
        colour: Colour = SOFT_INK,
        points: int = POINTS,
        anchor: str = "la",
    ) -> None:
        """Write ``text``; ``anchor`` says which corner of it stands at ``at``, as in Pillow."""
        self.pen.text(at, text, colour, font(points), anchor=anchor)

    def tiles(
        self,
        images: Tensor,
        corner: tuple[int, int],
        size: tuple[int, int],
        *,
        step: tuple[int, int] | None = None,
        per_line: int | None = None,
        captions: Sequence[str] = (),
    ) -> None:
        """Draw images in lines from left to right.

        They are enlarged without smoothing and reduced with it.

        Args:
            images: ``[N, C, H, W]`` in pixel space.
            corner: Left and top of the first tile.
            size: Width and height of a tile.
            step: Pixels from one tile to the next, to the right and down; None leaves ``GAP``.
            per_line: Tiles of a line; None draws one line.
            captions: Text below each tile, shortened to the step.
        """
        right, down = step or (size[0] + GAP, size[1] + GAP)
        for i, image in enumerate(images):
            line, column = divmod(i, per_line or len(images))
            left, top = corner[0] + column * right, corner[1] + line * down
            tile = to_image(image)
            filtering = Image.Resampling.NEAREST
            if size[0] < tile.width:
                filtering = Image.Resampling.LANCZOS
            self.picture.paste(tile.convert("RGB").resize(size, filtering), (left, top))
            if captions:
                caption = shortened(captions[i], font(CAPTION_POINTS), right - 4 * GAP)
                self.text((left, top + size[1] + 1), caption, points=CAPTION_POINTS)

    def png(self) -> bytes:
        """Return the bytes of a PNG file."""
        buffer = BytesIO()
        self.picture.save(buffer, format="png", optimize=True)
        return buffer.getvalue()


def font(points: int) -> Font:
    """Return the font of every picture."""
    return ImageFont.load_default(points)


def tile_size(shape: Sequence[int], most: int) -> tuple[int, int]:
    """Return width and height of a tile for an image ``[..., H, W]``, each at most ``most`` pixels.

    Small images are enlarged by a whole factor, large ones reduced.
    """
    height, width = shape[-2:]
    factor = most / max(height, width)
    factor = int(factor) if factor >= 1 else factor
    return max(1, round(width * factor)), max(1, round(height * factor))


def shortened(name: str, font: Font, width: int = LABEL_WIDTH) -> str:
    """Return ``name`` on one line, at most ``width`` pixels wide."""
    name = one_line(name, LABEL_CHARACTERS)  # measuring takes time in proportion to the length
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "…") > width:
        name = name[:-1]
    return name.rstrip() + "…"


def to_image(image: Tensor) -> Image.Image:
    """Return ``[C, H, W]`` in pixel space as grey or RGB of 8 bits: clipped to [0, 1] and rounded.

    Of more than three channels the first three are shown, of two the first.
    """
    channels = image[:3] if len(image) >= 3 else image[0]
    levels = (channels.detach().cpu().clamp(0.0, 1.0) * 255.0).round().byte()
    return Image.fromarray((levels.permute(1, 2, 0) if levels.ndim == 3 else levels).numpy())


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
