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
from kdistill.data.raw_data import Name, unusable
from kdistill.transforms import Transform

Read = Callable[[list[int]], Tensor]  # rows of the source to float32 [n, C, S, S] in 0..1


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images ``[N, C, S, S]`` whose rows are read from their source every time they are used.

    Attributes:
        read: Rows of the source to images.
        rows: int64 ``[N]``, those that are in this part.
        each: Shape of an image, (C, S, S).
        device: Device that images are read to.
        dtype: Type of what ``read`` returns.
    """

    read: Read
    rows: Tensor
    each: tuple[int, ...]
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
        if not len(chosen):
            return torch.zeros(0, *self.each, device=self.device)
        return self.read(chosen.tolist()).to(self.device)

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

    def expand(self, count: int, *shape: int) -> "StreamedImages":
        """Return the same images with grey ones repeated to the channels of ``shape``."""
        return replace(self, each=shape, read=lambda rows: self.read(rows).expand(-1, *shape))


def of_items(
    read_one: Callable[[int], Tensor], first_pass: Iterable[Tensor], size: int | None, name: Name
) -> Tensor:
    """Return images that are read one by one.

    Args:
        read_one: Row to ``[C, H, W]``, as ``image_tensors.from_image`` returns it.
        first_pass: All of them, once: whatever cannot be used is noticed here.
        size: As for ``load_data``.
        name: Row to what messages call the image.

    Raises:
        DataError: No image, or one that is not square or not of the size of the first.
    """
    shapes = [_unit_range(image, size, name(row)).shape for row, image in enumerate(first_pass)]
    if not shapes:
        raise unusable("images", "none", "add images")
    side = shapes[0][1]
    for row, shape in enumerate(shapes):
        if shape[1:] != (side, side):
            raise image_tensors.size_error(
                f"square images of one size, got {side} ({name(0)}) and {shape[1]}×{shape[2]} "
                f"({name(row)})"
            )
    whole = max(shape[0] for shape in shapes), side, side

    def read(rows: list[int]) -> Tensor:
        images = (_unit_range(read_one(row), size, name(row)) for row in rows)
        return torch.stack([image.expand(whole) for image in images])

    return cast("Tensor", StreamedImages(read, torch.arange(len(shapes)), whole))


def of_array(images: Any, size: int | None, where: str) -> Tensor:
    """Return the images of an array or tensor, read in batches.

    Memory-mapped arrays, such as those of ``numpy.load(..., mmap_mode="r")``, stay on the disk.

    Raises:
        DataError: No image, or a first one that cannot be used.
    """

    def read(rows: list[int]) -> Tensor:
        batch = image_tensors.from_batch(images[rows], f"{where} images", [])
        return _unit_range(batch, size, f"{where} image {rows[0]}")

    if not len(images):
        raise unusable("images", "none", "add images")
    _, channels, height, width = read([0]).shape
    if height != width:
        raise image_tensors.size_error(f"square images, got {height}×{width}")
    rows = torch.arange(len(images))
    return cast("Tensor", StreamedImages(read, rows, (channels, height, width)))


def normalised(images: Tensor, transform: Transform) -> Tensor:
    """Return images that are normalised batch by batch, whenever they are read.

    Args:
        images: ``[N, C, S, S]``, pixel space; a tensor, or ``StreamedImages``.
        transform: Transform from pixel space to normalised images.
    """

    def read(rows: list[int]) -> Tensor:
        return transform.apply(images[torch.tensor(rows, device=images.device)])

    rows, shape = torch.arange(len(images)), tuple(images.shape[1:])
    return cast("Tensor", StreamedImages(read, rows, shape, images.device, images.dtype))


def _unit_range(images: Tensor, size: int | None, name: str) -> Tensor:
    """Return float32 in 0..1 of the asked size.

    Raises:
        DataError: Floats leave that range, which cannot be settled as nobody has read all images.
    """
    if size is not None:
        batch = images.reshape(-1, *images.shape[-3:])
        resized = image_tensors.resize_square(batch, size)
        images = resized.reshape(*images.shape[:-2], size, size)
    if images.dtype != torch.float32 or not images.numel():
        return image_tensors.unit_range(images)
    low, high = float(images.min()), float(images.max())
    if not (low >= -image_tensors.SLACK and high <= 1.0 + image_tensors.SLACK):
        raise unusable(
            "pixels in 0..1",
            f"{low:.4g}..{high:.4g} at {name}",
            "streamed floats must be divided before, or use bytes",
        )
    return images.clamp(0.0, 1.0)
