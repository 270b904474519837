"""What a run begins with: labels, and real images or noise."""

import torch
from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.keys import generator, make_key
from kdistill.selection import select

INITS = ("real", "herding", "k_means", "k_center", "noise")
# on copies of images of a class that has too few, as a share of the images' standard deviation
COPY_NOISE = 0.1


def balanced_labels(num_classes: int, ipc: int) -> Tensor:
    """Return ``[0]*ipc + [1]*ipc + ...``, the class-major order of the field."""
    return torch.arange(num_classes).repeat_interleave(ipc)


def initial_images(data: ImageDataset, ipc: int, init: str, seed: int) -> Tensor:
    """Return the first images ``[K*ipc, C, H, W]``, normalised.

    ``init`` is ``"real"`` (random real images of each class), ``"herding"``, ``"k_means"`` or
    ``"k_center"`` (real images chosen by their pixels, see ``kdistill.selection.select``) or
    ``"noise"`` (standard normal).  Copies of an image, where a class has fewer than ``ipc``, get
    some noise.

    Raises:
        ConfigError: ``init`` is unknown.
    """
    key = make_key(seed, "init")
    if init == "noise":
        shape = (data.num_classes * ipc, data.channels, data.size, data.size)
        return torch.randn(shape, generator=generator(key)).to(data.train.images)
    rows = select(
        "random" if init == "real" else init,
        data.train.images.flatten(1),
        data.train.labels,
        ipc,
        key,
    )
    return with_distinct_copies(data.transform.apply(data.train.images[rows]), rows, seed)


def with_distinct_copies(images: Tensor, rows: Tensor, seed: int) -> Tensor:
    """Return ``images [M, C, H, W]``, taken from ``rows`` of a data set, with noise on repetitions.

    Equal images have equal gradients, so copies would stay copies to the end of the run.
    """
    first = {row: i for i, row in reversed(list(enumerate(rows.tolist())))}
    is_copy = torch.tensor(
        [first[row] != i for i, row in enumerate(rows.tolist())], device=images.device
    )
    if not bool(is_copy.any()):
        return images
    noise = torch.randn(images.shape, generator=generator(make_key(seed, "copies"))).to(images)
    return images + COPY_NOISE * images.std() * noise * is_copy[:, None, None, None]
