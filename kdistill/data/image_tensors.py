"""Pictures and arrays of any kind to float32 ``[N, C, H, W]`` in pixel space.

The steps, in this order: layout (channels first), known integer scales, alpha over white, resize
and centre crop, one size, one number of channels, one value range.  Between the steps pixels are
uint8 in 0..255, float64 in 0..1 (``SCALED``: 16-bit pictures and whatever else has a scale that its
type says), or float32 whose range is settled last, over all splits together.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdistill.data.raw_data import Name, RawPart, counted, unusable
from kdistill.errors import ConfigError, DataError

# the type says "in 0..1 already": such pixels have no part in settling the range of others
SCALED = torch.float64
ALPHA = "alpha laid over white"
CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, colour, colour and alpha
# of the sides of an image that is scaled: before it is cropped, its long side grows with the short
MAX_RATIO = 64
CHUNK = 256  # images that are resized at a time
SLACK = 1.5 / 255  # how far interpolation may have left [0, 1]
# floats that reach beyond this (and not beyond 255) are 0..255; between 1 and this, nobody knows
BRIGHT = 16.0


def check_size(size: Any) -> None:
    """Refuse a ``size`` that is no positive whole number."""
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ConfigError(
            f"size: expected a positive whole number of pixels or None, got {size!r}; 32 is usual"
        )


def from_pil(picture: Image.Image, notes: list[str], size: int | None = None) -> Tensor:
    """Return a Pillow picture as ``[C, H, W]``, scaled and cropped to ``size`` if that is given.

    Args:
        picture: The picture.
        notes: What was changed is appended.
        size: As for ``picture_files.decode``.

    Raises:
        ValueError: Its pixels have no known range.
    """
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.float32)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError("32-bit grey values beyond 16 bits")
        deep = torch.from_numpy(values / np.float32(65535))[None].to(SCALED)
        return deep if size is None else resize_square(deep[None], size)[0]
    kind = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        note(notes, ALPHA)
    picture = picture.convert(kind)
    if size is not None and picture.size != (size, size):
        # as resize_square does, but Pillow lets other threads run
        (top, left), (height, width) = scaled(picture.height, picture.width, size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        picture = picture.crop((left, top, left + size, top + size))
    values = np.array(picture)
    return torch.from_numpy(values[None] if kind == "L" else values.transpose(2, 0, 1).copy())


def scaled(height: int, width: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how an image becomes a square: top and left of the crop, height and width scaled.

    Raises:
        DataError: One side is more than ``MAX_RATIO`` times the other.
    """
    if max(height, width) > MAX_RATIO * min(height, width):
        raise unusable(
            f"images at most {MAX_RATIO} times as long as wide",
            f"{height}×{width}",
            "crop them or leave them out",
        )
    scale = size / min(height, width)
    shape = max(size, round(height * scale)), max(size, round(width * scale))
    return ((shape[0] - size) // 2, (shape[1] - size) // 2), shape


def from_image(image: Any, name: str, notes: list[str]) -> Tensor:
    """Return one image as ``[1 or 3, H, W]``.

    Args:
        image: Pillow picture, or array or tensor ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``.
        name: What messages call it.
        notes: What was changed is appended.

    Raises:
        DataError: It is none of these.
    """
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


def from_batch(images: Any, name: str, notes: list[str]) -> Tensor:
    """Return images as ``[N, 1 or 3, H, W]``.

    Args:
        images: Array or tensor ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``.
        name: What messages call them.
        notes: What was changed is appended.

    Raises:
        DataError: It is no such array.
    """
    values = _tensor(images, name)
    if values.ndim not in (3, 4):
        fix = "reshape each row to [H, W]" if values.ndim == 2 else "reshape it"
        raise unusable(f"{name} [N, H, W], [N, H, W, C] or [N, C, H, W]", list(values.shape), fix)
    return _over_white(_channels_first(_known_scale(values), name), notes)


def stack(images: Iterable[Tensor], size: int | None, name: Name) -> Tensor:
    """Stack images ``[C, H, W]``.

    They are taken one at a time and resized at once: memory is that of the result.

    Raises:
        DataError: No image, or images of different sizes without ``size``.
    """
    rows: list[Tensor] = []
    for row, image in enumerate(images):
        fitted = image if size is None else resize_square(image[None], size)[0]
        if rows and fitted.shape[1:] != rows[0].shape[1:]:
            raise different_sizes(rows[0], name(0), fitted, name(row))
        rows.append(fitted)
    if not rows:
        raise unusable("images", "none", "add images")
    rows = same_channels(rows)
    if len({row.dtype for row in rows}) > 1:
        floats = [row for row in rows if row.dtype == torch.float32 and row.numel()]
        is_byte_range = max((float(row.max()) for row in floats), default=0.0) > BRIGHT
        # floats in 0..255: all wait for the common factor
        rows = [_byte_range(row) if is_byte_range else unit_range(row) for row in rows]
    return torch.stack(rows)


def resize_square(images: Tensor, size: int) -> Tensor:
    """Scale ``[N, C, H, W]`` so that the short side is ``size``, and crop the middle.

    Bicubic with antialiasing; uint8 stays uint8 and is Pillow's own resize up to one level, floats
    are clipped to the range of each image.
    """
    height, width = images.shape[2:]
    if (height, width) == (size, size) or not images.numel():
        return images
    if images.dtype == SCALED:
        return resize_square(images.float(), size).to(SCALED)
    (top, left), shape = scaled(height, width, size)
    chunks = []
    for chunk in images.split(CHUNK):
        whole = torch.nn.functional.interpolate(
            chunk, size=shape, mode="bicubic", antialias=True, align_corners=False
        )
        if chunk.is_floating_point():  # bytes saturate by themselves
            low, high = chunk.amin((2, 3), keepdim=True), chunk.amax((2, 3), keepdim=True)
            whole = torch.minimum(torch.maximum(whole, low), high)
        chunks.append(whole[:, :, top : top + size, left : left + size])
    return torch.cat(chunks)


def same_channels(images: Sequence[Tensor]) -> list[Tensor]:
    """Repeat grey images (``[..., 1, H, W]``) to three channels if any other is in colour."""
    if {image.shape[-3] for image in images} == {1, 3}:
        return [image.expand(*image.shape[:-3], 3, *image.shape[-2:]) for image in images]
    return list(images)


def check_shapes(parts: dict[str, Tensor]) -> None:
    """Raise DataError unless the images of all splits are square and of one size."""
    (first, images), *others = parts.items()
    for part, other in others:
        if other.shape[2:] != images.shape[2:]:
            raise size_error(
                f"images of one size, got {_size(images)} in {first} and {_size(other)} in {part}"
            )
    if images.shape[2] != images.shape[3]:
        raise size_error(f"square images, got {_size(images)}")


def to_unit_range(parts: dict[str, RawPart], notes: list[str]) -> list[Tensor]:
    """Return the images of every split as contiguous float32 in [0, 1], by one rule for all.

    ``docs/guide/data.md`` has the rules.

    Raises:
        DataError: NaN or infinite pixels, or pixels of an unknown range.
    """
    for where, part in parts.items():
        _check_finite(part, where)
    unscaled = [part.images for part in parts.values()]
    floats = [images for images in unscaled if images.dtype == torch.float32 and images.numel()]
    factor = _factor(floats, notes)
    # always a copy: the data set must not change when its source does
    scaled_parts = [
        (images * factor).clamp_(0.0, 1.0) if images.dtype == torch.float32 else unit_range(images)
        for images in unscaled
    ]
    return [images.contiguous() for images in same_channels(scaled_parts)]


def _factor(floats: list[Tensor], notes: list[str]) -> float:
    """Return what floats of unknown range are multiplied with."""
    low = min((float(x.min()) for x in floats), default=0.0)
    high = max((float(x.max()) for x in floats), default=1.0)
    if low >= 0.0 and high <= 1.0:
        return 1.0
    if low >= -SLACK and high <= 1.0 + SLACK:
        notes.append(f"pixels {low:.3g}..{high:.3g} clipped to 0..1")
        return 1.0
    if low >= 0.0 and BRIGHT < high <= 255.0:
        notes.append(f"pixels {low:.3g}..{high:.3g} taken as 0..255 and divided by 255")
        return 1.0 / 255
    fix = (
        "they look normalised: give the images as they were before"
        if low < 0.0
        else "divide them by their largest possible value"
    )
    raise unusable("pixels in 0..1 (or 0..255)", f"{low:.4g}..{high:.4g}", fix)


def _check_finite(part: RawPart, where: str) -> None:
    if part.images.dtype == torch.uint8:
        return
    chunks = part.images.split(CHUNK)
    is_bad = torch.cat([~chunk.isfinite().flatten(1).all(1) for chunk in chunks])
    if is_bad.any():
        first = part.name(where, int(is_bad.nonzero()[0]))
        got = f"NaN or infinity in {counted(int(is_bad.sum()), 'image')}, first {first}"
        raise unusable("finite pixels", got, "remove or repair them")


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        if values.is_complex():
            raise unusable(f"{name} to be real numbers", values.dtype, "give an array of pixels")
        return values.detach().cpu()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "buif":
            raise TypeError(f"of type {array.dtype}")
        # writable, or torch warns
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise unusable(
            f"{name} to be numbers", f"{type(values).__name__} ({error})", "give an array"
        ) from error


def _known_scale(values: Tensor) -> Tensor:
    """Return uint8, ``SCALED`` for a type whose largest value is known, or plain float32."""
    if values.dtype in (torch.uint8, torch.float32):
        return values
    if values.dtype == torch.uint16:
        return (values.to(torch.int32).float() / 65535).to(SCALED)
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
    if first and last:  # 3 pixels wide, or 3 rows: bytes come channels last, floats channels first
        last = images.dtype == torch.uint8
    return images.permute(0, 3, 1, 2) if last else images


def _over_white(images: Tensor, notes: list[str]) -> Tensor:
    if images.shape[1] in (1, 3) or not images.numel():
        return images[:, : 1 if images.shape[1] < 3 else 3]
    note(notes, ALPHA)
    pixels, is_scaled = unit_range(images), images.dtype != torch.float32
    white = 1.0 if is_scaled or float(pixels.max()) <= 1.0 + SLACK else 255.0
    colour, alpha = pixels[:, :-1], pixels[:, -1:] / white
    composed = colour * alpha + white * (1.0 - alpha)
    return composed.to(SCALED) if is_scaled else composed


def unit_range(images: Tensor) -> Tensor:
    """Return float32 in 0..1; float32 stays as it is."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def _byte_range(images: Tensor) -> Tensor:
    """Return float32 in 0..255; float32 stays as it is."""
    return images.float().mul_(255) if images.dtype == SCALED else images.float()


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
    """Return a warning if 16-bit images use less than a quarter of their range.

    Those of 10 to 14-bit cameras do.
    """
    deep = [images for images in parts if images.dtype == SCALED and images.numel()]
    highest = round(max((float(images.max()) for images in deep), default=0.0) * 65535)
    if not 255 < highest < 2**14:
        return []
    bits = highest.bit_length()
    return [
        f"16-bit images reach no more than {highest:,} of 65,535, as those of a {bits}-bit camera "
        f"do, and are read as dark images; multiply them by {2 ** (16 - bits)} before, or give "
        f"arrays divided by {2**bits - 1:,}"
    ]
