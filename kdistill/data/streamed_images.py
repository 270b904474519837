"""Images that are read when they are asked for, for data larger than memory.

What a pass over all of them needs has the names of a tensor's: fitting, fingerprints and scores
take either.
Symbols: N images, C channels, S their side.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from kdistill.data import image_tensors
from kdistill.data.raw_data import unusable
from kdistill.transforms import Transform

Read = Callable[[list[int]], Tensor]  # rows of the source to float32 [n, C, S, S] in 0..1


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """``[N, C, S, S]``, float32, pixel space; rows are read from their source every time they are looked at.

    Attributes:
        read: Rows of the source to images.
        rows: int64 ``[N]``, those that are in this part.
        each: (C, S, S).
        device: Where images go.
    """

    read: Read
    rows: Tensor
    each: tuple[int, int, int]
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant
    dtype: torch.dtype = torch.float32
    ndim: ClassVar[int] = 4

    @property
    def shape(self) -> torch.Size:
        """N, C, S, S."""
        return torch.Size((len(self.rows), *self.each))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Return images as a tensor; the only way in which they are read."""
        chosen = self.rows[rows.cpu() if isinstance(rows, Tensor) else rows]
        return (
            self.read(chosen.tolist()).to(self.device)
            if len(chosen)
            else torch.zeros(0, *self.each, device=self.device)
        )

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images, ``size`` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def take(self, rows: Tensor) -> "StreamedImages":
        """Return those rows, without reading them."""
        return replace(self, rows=self.rows[rows.cpu()])

    def to(self, device: torch.device | str) -> "StreamedImages":
        """Return the same images, read to ``device``."""
        return replace(self, device=torch.device(device))

    def numel(self) -> int:
        """Return how many pixels there are."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Return True."""
        return True

    def like(self, channels: int) -> "StreamedImages":
        """Return grey images with ``channels`` equal channels, or the images themselves if they have as many."""
        if self.each[0] == channels:
            return self
        shape = (channels, *self.each[1:])
        return replace(self, each=shape, read=lambda rows: self.read(rows).expand(-1, *shape))


def of_items(
    one: Callable[[int], Tensor],
    first: Iterable[Tensor],
    size: int | None,
    name: image_tensors.Name,
) -> Tensor:
    """Return images that are read one by one.

    Args:
        one: Row to ``[C, H, W]``, as ``image_tensors.single`` and ``image_tensors.decode`` give it.
        first: All of them, once: whatever cannot be used is found here.
        size: As for ``load_data``.
        name: Row to what the image is called in a message.

    Raises:
        DataError: No image, or one that is not square or not of the size of the first.
    """
    shapes = [_unit(image, size, name(row)).shape for row, image in enumerate(first)]
    if not shapes:
        raise unusable("images", "none", "add images")
    side = shapes[0][1]
    for row, shape in enumerate(shapes):
        if shape[1:] != (side, side):
            raise image_tensors.size_error(
                f"square images of one size, got {side} ({name(0)}) and {shape[1]}×{shape[2]} "
                f"({name(row)})"
            )
    channels = max(shape[0] for shape in shapes)

    def read(rows: list[int]) -> Tensor:
        return torch.stack(
            [_unit(one(row), size, name(row)).expand(channels, side, side) for row in rows]
        )

    return cast("Tensor", StreamedImages(read, torch.arange(len(shapes)), (channels, side, side)))


def of_array(images: Any, size: int | None, where: str) -> Tensor:
    """Return the images of an array (such as one of ``numpy.load(..., mmap_mode="r")``) or tensor, read in batches.

    Raises:
        DataError: The first image cannot be used.
    """

    def read(rows: list[int]) -> Tensor:
        return _unit(
            image_tensors.batch(images[rows], f"{where} images", []),
            size,
            f"{where} image {rows[0]}",
        )

    _, channels, height, width = read([0]).shape if len(images) else (0, 0, 0, 0)
    if not len(images):
        raise unusable("images", "none", "add images")
    if height != width:
        raise image_tensors.size_error(f"square images, got {height}×{width}")
    return cast(
        "Tensor", StreamedImages(read, torch.arange(len(images)), (channels, height, width))
    )


def normalised(images: Tensor, transform: Transform) -> Tensor:
    """Return images that are normalised batch by batch, whenever they are read.

    Args:
        images: ``[N, C, S, S]``, pixel space; a tensor, or ``StreamedImages``.
        transform: Transform from pixel space to normalised images.
    """

    def read(rows: list[int]) -> Tensor:
        return transform.apply(images[torch.tensor(rows, device=images.device)])

    _, channels, height, width = images.shape
    rows, shape = torch.arange(len(images)), (channels, height, width)
    return cast("Tensor", StreamedImages(read, rows, shape, images.device, images.dtype))


def same_channels(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return parts of one size with as many channels as the one in colour has."""
    found = {which: cast("StreamedImages", images) for which, images in parts.items()}
    sizes = {images.each[1] for images in found.values()}
    if len(sizes) > 1:
        raise image_tensors.size_error(f"images of one size, got sides of {sorted(sizes)}")
    channels = max(images.each[0] for images in found.values())
    return {which: cast("Tensor", images.like(channels)) for which, images in found.items()}


def _unit(images: Tensor, size: int | None, name: str) -> Tensor:
    """Return float32 in 0..1 of the asked size; floats must have that range, as nobody has seen the others yet."""
    if size is not None:
        images = image_tensors.square(images.reshape(-1, *images.shape[-3:]), size).reshape(
            *images.shape[:-2], size, size
        )
    if images.dtype == torch.float32 and images.numel():
        low, high = float(images.min()), float(images.max())
        if not (low >= -image_tensors.SLACK and high <= 1.0 + image_tensors.SLACK):
            raise unusable(
                "pixels in 0..1",
                f"{low:.4g}..{high:.4g} at {name}",
                "streamed floats must be divided before, or use bytes",
            )
        return images.clamp(0.0, 1.0)
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()
