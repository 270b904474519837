"""The filmstrip: one row of images for each stage of a search, one image of each class."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kdistill.artifacts.drawing import GAP, HEAD, INK, MARGIN, Page, tile_size

WIDTH, TILE = 1400, 96  # pixels at most
MAX_CLASSES = 40  # more are left out
LABEL = 190  # pixels for name and note
CHOSEN = (196, 78, 30)


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
    classes = labels.unique().tolist()[:MAX_CLASSES]
    first = [int((labels == label).nonzero()[0]) for label in classes]
    most = min(TILE, (WIDTH - 2 * MARGIN - LABEL) // len(first) - GAP)
    width, height = tile_size(frames[0].images.shape, most)
    step = max(height, 34) + 3 * GAP
    left, strip = MARGIN + LABEL, len(first) * (width + GAP)
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
