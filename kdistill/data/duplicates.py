"""The same picture twice: a duplicate is an image with exactly the pixels of another, as loaded.

Images of one colour all over show nothing that could leak, and do not count.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from torch import Tensor

from kdistill.data.image_dataset import Split
from kdistill.data.raw_data import counted, numbered

T = TypeVar("T")
Place = tuple[str, int]  # part and row
CHUNK = 1024  # images that are compared with their first pixel at a time


def digests(images: Tensor) -> list[bytes | None]:
    """Return 16 bytes per image that are equal for equal pixels; None for one of one colour.

    Cost: about a second per gigabyte of float32 pixels.
    """
    found: list[bytes | None] = []
    for chunk in images.split(CHUNK):
        chunk = chunk.detach().cpu().contiguous()
        has_one_colour = (chunk == chunk[:, :, :1, :1]).flatten(1).all(1).tolist()
        for image, is_plain in zip(chunk.numpy(), has_one_colour, strict=True):
            content = repr(image.shape).encode() + image.tobytes()
            found.append(None if is_plain else hashlib.blake2b(content, digest_size=16).digest())
    return found


def by_pixels(images: Iterable[T], digest: Callable[[T], bytes | None]) -> list[list[T]]:
    """Return groups of images with equal pixels, in the order of the first of each.

    An image that is there once is a group of its own; images without a digest are in none.
    """
    groups: dict[bytes, list[T]] = defaultdict(list)
    for image in images:
        if (own := digest(image)) is not None:
            groups[own].append(image)
    return list(groups.values())


def warnings(splits: Mapping[str, Split]) -> list[str]:
    """Return a sentence about test images that are training images too, and one about labels.

    The second one is about images that have two labels.
    """
    own = {part: digests(split.images) for part, split in splits.items()}
    places = [(part, row) for part, rows in own.items() for row in range(len(rows))]
    labels = {part: split.labels.tolist() for part, split in splits.items()}
    leaked: list[tuple[Place, Place]] = []
    torn: list[tuple[Place, Place]] = []
    for same in by_pixels(places, lambda place: own[place[0]][place[1]]):
        training = [place for place in same if place[0] == "train"]
        if training:
            leaked += [(place, training[0]) for place in same if place[0] == "test"]
        label = {place: labels[place[0]][place[1]] for place in same}
        torn += [(same[0], place) for place in same if label[place] != label[same[0]]][:1]

    def both(pair: tuple[Place, Place]) -> str:
        names = (
            files[row] if (files := splits[part].files) else numbered(part)(row)
            for part, row in pair
        )
        return " and ".join(names)

    sentences = []
    if leaked:
        total = counted(len(splits["test"]), "test image")
        verb = "is" if len(leaked) == 1 else "are"
        sentences.append(
            f"{len(leaked):,} of {total} {verb} among the training images, pixel for pixel (first "
            f"{both(leaked[0])}): accuracy on them says nothing; kdistill check lists them"
        )
    if torn:
        verb = "stands" if len(torn) == 1 else "stand"
        sentences.append(
            f"{counted(len(torn), 'image')} {verb} in two classes, pixel for pixel (first "
            f"{both(torn[0])}); kdistill check lists them"
        )
    return sentences
