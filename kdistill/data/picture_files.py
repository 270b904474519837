"""Picture files: which endings are read, and how one file becomes a small tensor.

JPEG is decoded at an eighth, a quarter or half of its size where that leaves at least four times
the side that is asked for, and Pillow resizes on the picture itself: both let other threads run,
and neither depends on their number.
"""

import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import PIL
from PIL import Image, ImageOps, features
from torch import Tensor

from kdistill.data import image_tensors
from kdistill.data.raw_data import unusable
from kdistill.errors import DataError

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# fmt: off
SUFFIXES = (
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff",
    ".webp",
)
# fmt: on
DRAFT_FACTOR = 4  # a JPEG is decoded at no less than this many times the side that is asked for
# pixels that any file may have, and for each of its bytes: a PNG of one colour has a thousand,
# photographs fewer than ten
PIXELS, PIXELS_PER_BYTE = 1 << 25, 16
# raised whenever decoding changes, so that cached pixels of an older version are not used
RECIPE = 1
# what Pillow raises for a file that is no whole picture, and for one of far too many pixels
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

Decoded = tuple[Tensor, bool]  # pixels, and whether alpha was laid over white


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Attributes:
        path: Where it is.
        label: Number of its class, or the label that a list gives it.
        stamp: Size, times and inode, by which a changed file is recognised.
    """

    path: Path
    label: Any
    stamp: tuple[int, ...]


def picture_at(path: Path, label: Any, status: os.stat_result) -> Picture:
    """Return the entry of a regular file."""
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return Picture(path, label, stamp)


def is_picture(name: str) -> bool:
    """Return whether a file of this name is read; HEIC needs the package pillow-heif."""
    suffix = Path(name).suffix.lower()
    return suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and can_read_heif())


@cache
def can_read_heif() -> bool:
    """Return whether HEIC can be read, and make Pillow read it."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


@cache
def decoder_version() -> str:
    """Return what decoded pixels depend on: our recipe, Pillow and the libraries in it."""
    names = ("jpg", "libjpeg_turbo", "webp", "avif", "libtiff", "jpg_2000", "zlib")
    libraries = {name: features.version(name) for name in names}
    if can_read_heif():
        import pillow_heif

        libraries["pillow_heif"] = pillow_heif.__version__
    return f"recipe {RECIPE}, Pillow {PIL.__version__}, " + ", ".join(
        f"{name} {value}" for name, value in libraries.items()
    )


def decode(source: Any, name: str, notes: list[str], size: int | None = None) -> Tensor:
    """Read a picture from a path or a binary stream.

    Args:
        source: Path, or binary stream.
        name: What messages call it.
        notes: What was changed is appended.
        size: Scale the short side to this and crop the middle; None keeps the size of the file.

    Returns:
        ``[C, H, W]`` with C = 1 (grey) or 3; uint8, or ``image_tensors.SCALED`` for 16-bit grey.
        Alpha lies over white.

    Raises:
        DataError: The file is no picture, truncated or damaged, or has more pixels than a file of
            its size may have.
    """
    try:
        with Image.open(source) as picture:
            upright = ImageOps.exif_transpose(
                _checked(picture, source) if size is None else _reduced(picture, source, size)
            )
            return image_tensors.from_pil(upright, notes, size)
    except UNREADABLE as error:
        raise Unreadable(name, reason_of(error)) from error


def _checked(picture: Image.Image, source: Any) -> Image.Image:
    """Return the picture, whose pixels are not decoded yet, if they are few enough.

    Raises:
        ValueError: They are not.
    """
    is_path = isinstance(source, str | os.PathLike)
    nbytes = os.stat(source).st_size if is_path else len(source.getbuffer())
    most = PIXELS + PIXELS_PER_BYTE * nbytes
    width, height = picture.size
    if width * height > most:
        raise ValueError(
            f"{width:,}×{height:,} pixels, where a file of {nbytes:,} bytes may have {most:,}"
        )
    return picture


def _reduced(picture: Image.Image, source: Any, size: int) -> Image.Image:
    """Return a picture whose short side is ``size`` if its decoder can skip detail.

    Of other formats the picture itself is returned.

    Raises:
        ValueError: One side is too many times the other, or there are too many pixels.
    """
    whole = picture.size
    if max(whole) > image_tensors.MAX_RATIO * min(whole):
        raise ValueError(
            f"{whole[0]:,}×{whole[1]:,} pixels, more than {image_tensors.MAX_RATIO} times as long "
            "as wide"
        )
    drafted = picture.draft(None, (DRAFT_FACTOR * size, DRAFT_FACTOR * size))
    _checked(picture, source)
    if drafted is None or picture.size == whole:
        return picture
    # the last column and row of the reduced picture may stand for fewer pixels than the others
    factor = max(round(full / part) for full, part in zip(whole, picture.size, strict=True))
    box = (0.0, 0.0, whole[0] / factor, whole[1] / factor)
    _, (height, width) = image_tensors.scaled(whole[1], whole[0], size)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box)


class Unreadable(DataError):
    """A picture file that cannot be read, and why."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason
        got, fix = f"{name} ({reason})", "remove or replace it"
        super().__init__(str(unusable("a picture that Pillow can read", got, fix)))


def reason_of(error: Exception) -> str:
    """Return why a picture cannot be read, without the path at the end of Pillow's message."""
    return getattr(error, "strerror", None) or str(error).split(" '")[0] or type(error).__name__
