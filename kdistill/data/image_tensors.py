"""Pictures and arrays of any kind to float32 ``[N, C, H, W]`` in pixel space.

The steps, in this order: layout (channels first), known integer scales, alpha over white, resize
    and centre crop, one size, one
number of channels, one value range.  Between the steps pixels are uint8 in 0..255, float64 in 0..1
(``KNOWN``: 16-bit pictures and whatever else has a scale that its type says), or float32 whose
range is settled last, over all splits together.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdistill.data.raw_data import counted, unusable
from kdistill.errors import ConfigError, DataError

KNOWN = (
    torch.float64
)  # the type says "in 0..1 already": such pixels have no part in settling the range of others
ALPHA = "alpha laid over white"
CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, colour, colour and alpha
# of the sides of an image that is scaled: before it is cropped, its long side grows with the short
# one
MAX_RATIO = 64
CHUNK = 256  # images that are resized at a time
SLACK = 1.5 / 255  # how far interpolation may have left [0, 1]
# floats that reach beyond this (and not beyond 255) are 0..255; between 1 and this, nobody knows
BRIGHT = 16.0

Name = Callable[[int], str]  # row number to what the image is called in a message


def check_size(size: Any) -> None:
    """Refuse a ``size`` that is no positive whole number."""
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ConfigError(
            f"size: expected a positive whole number of pixels or None, got {size!r}; 32 is usual"
        )


def from_pil(picture: Image.Image, notes: list[str], size: int | None = None) -> Tensor:
    """Return a Pillow picture as ``[C, H, W]``, of ``size`` if that is given; see ``pictures.decode``."""
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.float32)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError("32-bit grey values beyond 16 bits")
        deep = torch.from_numpy(values / np.float32(65535))[None].to(KNOWN)
        return deep if size is None else square(deep[None], size)[0]
    kind = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        note(notes, ALPHA)
    picture = picture.convert(kind)
    values = np.array(picture if size is None else _square_picture(picture, size))
    return torch.from_numpy(values[None] if kind == "L" else values.transpose(2, 0, 1).copy())


def _square_picture(picture: Image.Image, size: int) -> Image.Image:
    """Do as ``square`` with Pillow, which lets other threads run."""
    (width, height), (top, left), shape = (
        picture.size,
        *_scaled(picture.height, picture.width, size),
    )
    if (height, width) == (size, size):
        return picture
    return picture.resize((shape[1], shape[0]), Image.Resampling.BICUBIC).crop(
        (left, top, left + size, top + size)
    )


def scaled_size(whole: tuple[int, int], size: int) -> tuple[int, int]:
    """Return width and height of a picture whose short side becomes ``size``."""
    height, width = _scaled(whole[1], whole[0], size)[1]
    return width, height


def _scaled(height: int, width: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return top and left of the crop, and height and width of the scaled picture."""
    if max(height, width) > MAX_RATIO * min(height, width):
        raise unusable(
            f"images at most {MAX_RATIO} times as long as wide",
            f"{height}×{width}",
            "crop them or leave them out",
        )
    scale = size / min(height, width)
    shape = max(size, round(height * scale)), max(size, round(width * scale))
    return ((shape[0] - size) // 2, (shape[1] - size) // 2), shape


def single(image: Any, name: str, notes: list[str]) -> Tensor:
    """Return one image (Pillow picture, array or tensor, ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``) as ``[1 or 3, H, W]``."""
    if isinstance(image, Image.Image):
        try:
            return from_pil(image, notes)
        except (OSError, SyntaxError, ValueError) as error:
            raise unusable(
                "a picture of 8 or 16 bits", f"{name} ({error})", "convert it first"
            ) from error
    values = _tensor(image, name)
    if values.ndim not in (2, 3):
        raise unusable(
            f"{name} to be [H, W], [H, W, C] or [C, H, W]", list(values.shape), "reshape it"
        )
    return _over_white(_channels_first(_known_scale(values)[None], name), notes)[0]


def batch(images: Any, name: str, notes: list[str]) -> Tensor:
    """Return an array or tensor ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]`` as ``[N, 1 or 3, H, W]``."""
    values = _tensor(images, name)
    if values.ndim not in (3, 4):
        fix = "reshape each row to [H, W]" if values.ndim == 2 else "reshape it"
        raise unusable(f"{name} [N, H, W], [N, H, W, C] or [N, C, H, W]", list(values.shape), fix)
    return _over_white(_channels_first(_known_scale(values), name), notes)


def collect(images: Iterable[Tensor], size: int | None, name: Name) -> Tensor:
    """Stack images ``[C, H, W]``, one at a time, each resized as soon as it is there: memory is that of the result.

    Raises:
        DataError: No image, or images of different sizes without ``size``.
    """
    rows: list[Tensor] = []
    for row, image in enumerate(images):
        fitted = image if size is None else square(image[None], size)[0]
        if rows and fitted.shape[1:] != rows[0].shape[1:]:
            raise different_sizes(rows[0], name(0), fitted, name(row))
        rows.append(fitted)
    if not rows:
        raise unusable("images", "none", "add images")
    rows = same_channels(rows)
    if len({row.dtype for row in rows}) > 1:
        highest = max(
            (float(row.max()) for row in rows if row.dtype == torch.float32 and row.numel()),
            default=0.0,
        )
        rows = [
            _byte_range(row) if highest > BRIGHT else _unit(row) for row in rows
        ]  # 0..255: all wait for the common factor
    return torch.stack(rows)


def square(images: Tensor, size: int) -> Tensor:
    """Scale ``[N, C, H, W]`` so that the short side is ``size``, and crop the middle; uint8 stays uint8.

    Bicubic with antialiasing: for uint8 Pillow's own resize up to one level, for floats clipped to
        the range of each image.
    """
    height, width = images.shape[2:]
    if (height, width) == (size, size) or not images.numel():
        return images
    if images.dtype == KNOWN:
        return square(images.float(), size).to(KNOWN)
    (top, left), shape = _scaled(height, width, size)
    chunks = []
    for chunk in images.split(CHUNK):
        scaled = torch.nn.functional.interpolate(
            chunk, size=shape, mode="bicubic", antialias=True, align_corners=False
        )
        if chunk.is_floating_point():  # bytes saturate by themselves
            scaled = torch.minimum(
                torch.maximum(scaled, chunk.amin((2, 3), keepdim=True)),
                chunk.amax((2, 3), keepdim=True),
            )
        chunks.append(scaled[:, :, top : top + size, left : left + size])
    return torch.cat(chunks)


def same_channels(images: Sequence[Tensor]) -> list[Tensor]:
    """Repeat grey images (``[..., 1, H, W]``) to three channels if any other is in colour."""
    if {image.shape[-3] for image in images} == {1, 3}:
        return [image.expand(*image.shape[:-3], 3, *image.shape[-2:]) for image in images]
    return list(images)


def to_unit_range(
    parts: dict[str, Tensor], name: Callable[[str, int], str], notes: list[str]
) -> dict[str, Tensor]:
    """Return the splits as contiguous float32 in [0, 1], with one rule for all of them; see ``docs/guide/data.md`` for the rules.

    Raises:
        DataError: NaN or infinite pixels, pixels of an unknown range, or images that are not square
            or differ between splits.
    """
    shapes = {part: images.shape[2:] for part, images in parts.items()}
    (first, shape), *others = shapes.items()
    for part, other in others:
        if other != shape:
            raise size_error(
                f"images of one size, got {_size(parts[first])} in {first} and "
                f"{_size(parts[part])} in {part}"
            )
    if shape[0] != shape[1]:
        raise size_error(f"square images, got {_size(parts[first])}")
    for part, images in parts.items():
        _check_finite(part, images, name)
    factor = _factor(
        [images for images in parts.values() if images.dtype == torch.float32 and images.numel()],
        notes,
    )
    # always a copy: the data set must not change when its source does
    scaled = [
        (images * factor).clamp_(0.0, 1.0) if images.dtype == torch.float32 else _unit(images)
        for images in parts.values()
    ]
    return {
        part: images.contiguous() for part, images in zip(parts, same_channels(scaled), strict=True)
    }


def _factor(floats: list[Tensor], notes: list[str]) -> float:
    if not floats:
        return 1.0
    low, high = min(float(x.min()) for x in floats), max(float(x.max()) for x in floats)
    if low >= 0.0 and high <= 1.0:
        return 1.0
    if low >= -SLACK and high <= 1.0 + SLACK:
        notes.append(f"pixels {low:.3g}..{high:.3g} clipped to 0..1")
        return 1.0
    if low >= 0.0 and BRIGHT < high <= 255.0:
        notes.append(f"pixels {low:.3g}..{high:.3g} taken as 0..255 and divided by 255")
        return 1.0 / 255
    looks = (
        "they look normalised: give the images as they were before"
        if low < 0.0
        else "divide them by their largest possible value"
    )
    raise unusable("pixels in 0..1 (or 0..255)", f"{low:.4g}..{high:.4g}", looks)


def _check_finite(part: str, images: Tensor, name: Callable[[str, int], str]) -> None:
    if images.dtype == torch.uint8:
        return
    bad = (
        torch.cat([~chunk.isfinite().flatten(1).all(1) for chunk in images.split(CHUNK)])
        .nonzero()
        .squeeze(1)
    )
    if len(bad):
        count = counted(len(bad), "image")
        raise unusable(
            "finite pixels",
            f"NaN or infinity in {count}, first {name(part, int(bad[0]))}",
            "remove or repair them",
        )


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        if values.is_complex():
            raise unusable(f"{name} to be real numbers", values.dtype, "give an array of pixels")
        return values.detach().cpu()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "buif":
            raise TypeError(f"of type {array.dtype}")
        return torch.from_numpy(
            np.require(array, requirements=["C", "W"])
        )  # writable, or torch warns
    except (TypeError, ValueError) as error:
        raise unusable(
            f"{name} to be numbers", f"{type(values).__name__} ({error})", "give an array"
        ) from error


def _known_scale(values: Tensor) -> Tensor:
    """Return uint8, ``KNOWN`` for a type whose largest value is known, or float32 with the values as they are."""
    if values.dtype in (torch.uint8, torch.float32):
        return values
    if values.dtype == torch.uint16:
        return (values.to(torch.int32).float() / 65535).to(KNOWN)
    return values.float()


def _channels_first(images: Tensor, name: str) -> Tensor:
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in CHANNELS, images.shape[3] in CHANNELS
    if not (first or last):
        raise unusable(
            "1 or 3 channels (2 or 4 with alpha) first or last",
            f"{list(images.shape)} in {name}",
            "reshape it",
        )
    if (
        first and last
    ):  # a 3-pixel-wide picture, or 3 rows: integers come channels last, floats channels first
        last = images.dtype == torch.uint8
    return images.permute(0, 3, 1, 2) if last else images


def _over_white(images: Tensor, notes: list[str]) -> Tensor:
    if images.shape[1] in (1, 3) or not images.numel():
        return images[:, : 1 if images.shape[1] < 3 else 3]
    note(notes, ALPHA)
    pixels, is_known = _unit(images), images.dtype != torch.float32
    white = 1.0 if is_known or float(pixels.max()) <= 1.0 + SLACK else 255.0
    colour, alpha = pixels[:, :-1], pixels[:, -1:] / white
    laid = colour * alpha + white * (1.0 - alpha)
    return laid.to(KNOWN) if is_known else laid


def _unit(images: Tensor) -> Tensor:
    """Return float32 in 0..1 (float32 as it is)."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def _byte_range(images: Tensor) -> Tensor:
    """Return float32 in 0..255 (float32 as it is)."""
    return images.float().mul_(255) if images.dtype == KNOWN else images.float()


def note(notes: list[str], text: str) -> None:
    """Append a note that is not there yet."""
    if text not in notes:
        notes.append(text)


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]}×{images.shape[-1]}"


def size_error(expected: str) -> DataError:
    """Return the error of images whose sizes cannot be used as they are."""
    return DataError(f"load_data: expected {expected}; pass size=32 to resize and centre-crop them")


def different_sizes(first: Tensor, first_name: str, other: Tensor, other_name: str) -> DataError:
    """Return the error of two images that differ in size."""
    return size_error(
        f"images of one size, got {_size(first)} ({first_name}) and {_size(other)} ({other_name})"
    )


def dark_depths(parts: Sequence[Tensor]) -> list[str]:
    """Return a warning if 16-bit images use less than a quarter of their range, as those of 10 to 14-bit cameras do."""
    deep = [images for images in parts if images.dtype == KNOWN and images.numel()]
    highest = round(max((float(images.max()) for images in deep), default=0.0) * 65535)
    if not 255 < highest < 2**14:
        return []
    bits = highest.bit_length()
    return [
        f"16-bit images reach no more than {highest:,} of 65,535, as those of a {bits}-bit camera "
        "do, and are read as dark "
        f"images; multiply them by {2 ** (16 - bits)} before, or give arrays divided by "
        f"{2**bits - 1:,}"
    ]
