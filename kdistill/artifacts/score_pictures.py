"""Pictures of scores: a histogram per metric, and the easiest and hardest images of every class."""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from math import ceil

import numpy as np
from torch import Tensor

from kdistill.artifacts.image_grids import (
    CAPTION_POINTS,
    GAP,
    HEAD,
    HEADING_CHARACTERS,
    INK,
    LABEL_WIDTH,
    MARGIN,
    POINTS,
    SOFT_INK,
    Page,
    font,
    shortened,
    tile_size,
)
from kdistill.escape import one_line

BAR, EASY, HARD = (88, 120, 176), (66, 140, 96), (186, 84, 72)
PANEL, BINS, COLUMNS = (420, 220), 50, 2  # of the histograms
MAX_CLASSES, WIDTH, TILE = 50, 1840, 64
CAPTION = 20  # pixels below an image, for the name of its file


def histograms(scores: Mapping[str, Tensor], heading: str) -> bytes:
    """Return a PNG file with one panel per metric: how many images have which score.

    The median is marked.  Drawn by matplotlib where it is installed (the extra ``report``), else
    more plainly.
    """
    values = {name: score.double().numpy() for name, score in scores.items()}
    finite = {name: array[np.isfinite(array)] for name, array in values.items()}
    draw = _plotted if importlib.util.find_spec("matplotlib") else _drawn
    return draw(finite, one_line(heading, HEADING_CHARACTERS))


def _plotted(scores: Mapping[str, np.ndarray], heading: str) -> bytes:
    """Return the panels as matplotlib plots them."""
    from matplotlib.figure import Figure

    bar, mark, soft = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (BAR, HARD, SOFT_INK))
    rows = ceil(len(scores) / COLUMNS)
    figure = Figure(figsize=(9.4, 0.7 + 2.7 * rows), layout="constrained")
    figure.suptitle(heading, parse_math=False)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for (metric, values), panel in zip(scores.items(), panels, strict=False):
        panel.set_title(metric, loc="left", fontsize=10, parse_math=False)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=soft, labelsize=8)
        panel.set_ylabel("images", color=soft, fontsize=8)
        panel.hist(values, BINS, color=bar)
        if len(values):
            median = float(np.median(values))
            panel.axvline(median, color=mark, linewidth=1)
            panel.set_title(f"median {median:.3g}", loc="right", fontsize=8, color=mark)
    for panel in panels:  # the last row may have room for one more
        panel.set_axis_off()
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of a heading in another script
        figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _drawn(scores: Mapping[str, np.ndarray], heading: str) -> bytes:
    """Return the panels without matplotlib."""
    width, height = PANEL[0] + MARGIN, PANEL[1] + 2 * MARGIN
    rows = ceil(len(scores) / COLUMNS)
    page = Page(MARGIN + COLUMNS * width, 2 * MARGIN + HEAD + rows * height, heading)
    for index, (metric, values) in enumerate(scores.items()):
        row, column = divmod(index, COLUMNS)
        left, top = MARGIN + column * width, MARGIN + HEAD + row * height
        right, base, step = left + PANEL[0], top + PANEL[1], PANEL[0] / BINS
        page.text((left, top), metric, INK)
        page.pen.line((left, base, right, base), SOFT_INK)
        if not len(values):
            continue
        counts, edges = np.histogram(values, BINS)
        for i in counts.nonzero()[0].tolist():
            bar = max(1.0, (PANEL[1] - 30) * counts[i] / counts.max())
            x = left + i * step
            page.pen.rectangle((x, base - bar, x + step - 1, base), BAR)
        median, low, high = float(np.median(values)), edges[0], edges[-1]
        x = left + PANEL[0] * (median - low) / (high - low)
        page.pen.line((x, top + 22, x, base), HARD)
        note = f"median {median:.3g}, most in a bar {counts.max():,}"
        page.text((right, top), note, anchor="ra")
        page.text((left, base + 4), f"{low:.3g}")
        page.text((right, base + 4), f"{high:.3g}", anchor="ra")
    return page.png()


def extremes(
    images: Tensor,
    labels: Tensor,
    score: Tensor,
    classes: Sequence[str],
    heading: str,
    captions: Sequence[str],
    each: int = 8,
) -> Page:
    """Return a sheet with the easiest images of every class at the left, the hardest at the right.

    Args:
        images: ``[N, C, H, W]``, pixel space.
        labels: Class of each image, int64 ``[N]``.
        score: Score of each image, ``[N]``; larger is harder.
        classes: Names; of more than 50 classes the first are shown.
        heading: Text above.
        captions: Text below each of the N images, such as the name of its file.
        each: Images at each side at most, in the order of their scores.
    """
    rows = []
    for label, name in enumerate(classes[:MAX_CLASSES]):
        members = (labels == label).nonzero()[:, 0]
        order = members[score[members].argsort(stable=True)].tolist()
        rows.append((shortened(name, font(POINTS)), (order[:each], order[-each:])))
    cell = (WIDTH - LABEL_WIDTH - 3 * MARGIN) // (2 * each)
    size = tile_size(images.shape, max(24, min(TILE, cell - GAP)))
    texts = [captions[i] for _, sides in rows for side in sides for i in side]
    longest = max((font(CAPTION_POINTS).getlength(text[:99]) for text in texts), default=0)
    cell = min(cell, max(size[0], ceil(longest)) + 5 * GAP)
    left, top, tall, half = MARGIN + LABEL_WIDTH, MARGIN + 60, size[1] + CAPTION, each * cell
    page = Page(left + 2 * half + 2 * MARGIN, top + len(rows) * tall + MARGIN, heading)
    page.text((left, top - 8), "easiest", EASY, anchor="ls")
    page.text((left + half + MARGIN, top - 8), "hardest, the hardest last", HARD, anchor="ls")
    for row, (name, sides) in enumerate(rows):
        y = top + row * tall
        page.text((left - 10, y + size[1] / 2), name, anchor="rm")
        for x, side in zip((left, left + half + MARGIN), sides, strict=True):
            below = [captions[i] for i in side]
            page.tiles(images[side], (x, y), size, step=(cell, tall), captions=below)
    return page
