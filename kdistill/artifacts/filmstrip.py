"""The filmstrip: one row of images for each stage of a search, one image of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdistill.artifacts.preview import GAP, INK, MARGIN, PAPER, SOFT_INK, to_uint8

WIDTH, TILE = 1400, 96  # pixels at most
MAX_CLASSES = 40  # more are left out
LABEL = 190
CHOSEN = (196, 78, 30)


@dataclass(frozen=True)
class Frame:
    """One row.

    Attributes:
        name: Of the stage.
        note: Beside it, such as its distance.
        images: Of all classes, ``[M, C, H, W]`` in pixel space.
        is_chosen: Marked.
    """

    name: str
    note: str
    images: Tensor
    is_chosen: bool = False


def filmstrip(frames: Sequence[Frame], labels: Tensor, heading: str) -> bytes:
    """Return the picture as the bytes of a PNG file: the first image of each class in columns, stages from top to bottom.

    Args:
        frames: At least one; images of all have the same shape.
        labels: Class of each image, int64 ``[M]``.
        heading: Above the rows.
    """
    first = [
        int((labels == label).nonzero()[0]) for label in labels.unique().tolist()[:MAX_CLASSES]
    ]
    height, width = frames[0].images.shape[2:]
    tile = min(TILE, (WIDTH - 2 * MARGIN - LABEL) // len(first) - GAP)
    tile = (
        max(tile - tile % width, width) if width <= tile else tile
    )  # small images by whole factors
    size = (tile, max(1, round(tile * height / width)))
    head_font, font, small = (ImageFont.load_default(points) for points in (20, 15, 13))
    step = max(size[1], 34) + 3 * GAP
    wide = max(LABEL + len(first) * (size[0] + GAP), round(head_font.getlength(heading)))
    picture = Image.new("RGB", (2 * MARGIN + wide, 2 * MARGIN + 40 + step * len(frames)), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 6), heading, INK, head_font)
    for row, frame in enumerate(frames):
        top = MARGIN + 40 + row * step
        colour = CHOSEN if frame.is_chosen else INK
        draw.text(
            (MARGIN, top + size[1] / 2 - 9),
            frame.name + ("  chosen" if frame.is_chosen else ""),
            colour,
            font,
            anchor="lm",
        )
        draw.text((MARGIN, top + size[1] / 2 + 10), frame.note, SOFT_INK, small, anchor="lm")
        for column, array in enumerate(to_uint8(_shown(frame.images[first]))):
            image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
            image = image.resize(
                size, Image.Resampling.NEAREST if size[0] >= width else Image.Resampling.LANCZOS
            )
            picture.paste(image, (MARGIN + LABEL + column * (size[0] + GAP), top))
        if frame.is_chosen:
            right = MARGIN + LABEL + len(first) * (size[0] + GAP)
            draw.rectangle(
                (MARGIN + LABEL - 2, top - 2, right - GAP + 1, top + size[1] + 1),
                outline=CHOSEN,
                width=2,
            )
    buffer = BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _shown(images: Tensor) -> Tensor:
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1]
