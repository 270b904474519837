"""Pictures of scores: a histogram per metric, and the easiest and hardest images of every class."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdistill.artifacts.preview import (
    GAP,
    INK,
    LABEL_WIDTH,
    MARGIN,
    PAPER,
    SOFT_INK,
    shortened,
    to_uint8,
)
from kdistill.escape import one_line

BAR, EASY, HARD = (88, 120, 176), (66, 140, 96), (186, 84, 72)
PANEL, BINS, COLUMNS = (420, 220), 50, 2  # of the histograms
MOST_CLASSES, MOST_WIDTH = 50, 1840
CAPTION = 20  # pixels below an image, for the name of its file
HEADING_CHARACTERS = 150


def histograms(scores: dict[str, Tensor], heading: str) -> Image.Image:
    """Return one panel per metric: how many images have which score; the median is marked."""
    rows = -(-len(scores) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * (PANEL[0] + MARGIN) - MARGIN
    picture = Image.new("RGB", (width, 2 * MARGIN + 40 + rows * (PANEL[1] + 2 * MARGIN)), PAPER)
    ImageDraw.Draw(picture).text(
        (MARGIN, MARGIN - 6), one_line(heading, HEADING_CHARACTERS), INK, ImageFont.load_default(20)
    )
    for index, (metric, values) in enumerate(scores.items()):
        left = MARGIN + index % COLUMNS * (PANEL[0] + MARGIN)
        top = MARGIN + 40 + index // COLUMNS * (PANEL[1] + 2 * MARGIN)
        _panel(ImageDraw.Draw(picture), left, top, metric, values.double().numpy())
    return picture


def _panel(draw: ImageDraw.ImageDraw, left: int, top: int, metric: str, values: np.ndarray) -> None:
    font = ImageFont.load_default(14)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    high = high if high > low else low + 1.0
    counts, _ = np.histogram(finite, bins=BINS, range=(low, high))
    base, tall, step = top + PANEL[1], PANEL[1] - 30, PANEL[0] / BINS
    for i, count in enumerate(counts):
        if count:
            height = max(1.0, tall * count / counts.max())
            draw.rectangle((left + i * step, base - height, left + (i + 1) * step - 1, base), BAR)
    draw.line((left, base, left + PANEL[0], base), SOFT_INK)
    draw.text((left, top), metric, INK, font)
    draw.text((left, base + 4), f"{low:.3g}", SOFT_INK, font)
    draw.text((left + PANEL[0], base + 4), f"{high:.3g}", SOFT_INK, font, anchor="ra")
    if len(finite):
        median = float(np.median(finite))
        x = left + PANEL[0] * (median - low) / (high - low)
        draw.line((x, top + 22, x, base), HARD)
        note = f"median {median:.3g}, most in a bar {counts.max():,}"
        draw.text((left + PANEL[0], top), note, SOFT_INK, font, anchor="ra")


def extremes(
    images: Tensor,
    labels: Tensor,
    score: Tensor,
    classes: tuple[str, ...],
    heading: str,
    captions: Sequence[str],
    each: int = 8,
) -> Image.Image:
    """Return a sheet with the ``each`` easiest images of every class at the left and its hardest at the right, each sorted.

    Args:
        images: ``[N, C, H, W]``, pixel space.
        labels: int64 ``[N]``.
        score: ``[N]``; larger is harder.
        classes: Names; of more than 50 classes the first are shown.
        heading: Text above.
        captions: What stands below each of the N images, such as the name of its file.
        each: Images at each side, at most.
    """
    cell = (MOST_WIDTH - LABEL_WIDTH - 3 * MARGIN) // (2 * each)
    side, shown, half = max(24, min(64, cell - GAP)), classes[:MOST_CLASSES], each * cell
    left, top, tall, font = (
        MARGIN + LABEL_WIDTH,
        MARGIN + 60,
        side + CAPTION,
        ImageFont.load_default(14),
    )
    picture = Image.new(
        "RGB", (left + 2 * half + 2 * MARGIN, top + len(shown) * tall + MARGIN), PAPER
    )
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 6), heading, INK, ImageFont.load_default(20))
    draw.text((left, top - 8), "easiest", EASY, font, anchor="ls")
    draw.text((left + half + MARGIN, top - 8), "hardest, the hardest last", HARD, font, anchor="ls")
    for row, name in enumerate(shown):
        members = (labels == row).nonzero()[:, 0]
        order = members[score[members].argsort(stable=True)]
        y = top + row * tall
        draw.text((left - 10, y + side / 2), shortened(name, font), SOFT_INK, font, anchor="rm")
        for x, chosen in ((left, order[:each]), (left + half + MARGIN, order[-each:])):
            _row(picture, images[chosen], [captions[i] for i in chosen.tolist()], x, y, side, cell)
    return picture


def _row(
    picture: Image.Image,
    images: Tensor,
    captions: Sequence[str],
    left: int,
    top: int,
    side: int,
    cell: int,
) -> None:
    shown, draw, font = (
        images.cpu()[:, : 3 if images.shape[1] >= 3 else 1],
        ImageDraw.Draw(picture),
        ImageFont.load_default(11),
    )
    for i, (array, caption) in enumerate(zip(to_uint8(shown), captions, strict=True)):
        tile, x = (
            Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB"),
            left + i * cell,
        )
        way = Image.Resampling.NEAREST if side >= tile.width else Image.Resampling.LANCZOS
        picture.paste(tile.resize((side, side), way), (x, top))
        draw.text((x, top + side + 1), shortened(caption, font, cell - 4 * GAP), SOFT_INK, font)


def png(picture: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
