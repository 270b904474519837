"""The page that preview, filmstrip and score sheet are drawn on: heading, text, tiles of images."""

from collections.abc import Sequence
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
