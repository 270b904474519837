"""The same picture twice: a duplicate is an image with exactly the pixels of another, as loaded.

Images of one colour all over show nothing that could leak, and do not count.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from kdistill.data.raw_data import counted

Place = tuple[str, int]  # part and row
Name = Callable[[str, int], str]


def digests(images: Tensor) -> list[bytes]:
    """Return 16 bytes per image that are equal for equal pixels.

    Cost: about a second per gigabyte of float32 pixels.
    """
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for chunk in images.split(1024)
        for image in chunk.detach().cpu().contiguous().numpy()
    ]


def groups(parts: dict[str, Tensor]) -> list[list[Place]]:
    """Return the places of every image that is there more than once, in the order of the first of each."""
    places: dict[bytes, list[Place]] = defaultdict(list)
    for part, images in parts.items():
        is_plain = is_one_colour(images).tolist()
        for row, digest in enumerate(digests(images)):
            if not is_plain[row]:
                places[digest].append((part, row))
    return [same for same in places.values() if len(same) > 1]


def warnings(parts: dict[str, Tensor], labels: dict[str, Tensor], name: Name) -> list[str]:
    """Return one sentence each about test images that are training images too, and about images that have two labels."""
    leaked: list[tuple[Place, Place]] = []
    torn: list[tuple[Place, Place]] = []
    plain = {part: each.tolist() for part, each in labels.items()}
    for same in groups(parts):
        training = [place for place in same if place[0] == "train"]
        if training:
            leaked += [(place, training[0]) for place in same if place[0] == "test"]
        first = plain[same[0][0]][same[0][1]]
        torn += [(place, same[0]) for place in same if plain[place[0]][place[1]] != first][:1]
    found = []
    if leaked:
        total = len(parts["test"])
        found.append(
            f"{len(leaked):,} of {counted(total, 'test image')} "
            f"{'is' if len(leaked) == 1 else 'are'} among the training images, "
            f"pixel for pixel (first {name(*leaked[0][0])} and {name(*leaked[0][1])}): accuracy on "
            "them says nothing; "
            "kdistill check lists them"
        )
    if torn:
        found.append(
            f"{counted(len(torn), 'image')} {'stands' if len(torn) == 1 else 'stand'} in two "
            "classes, pixel for pixel "
            f"(first {name(*torn[0][1])} and {name(*torn[0][0])}); kdistill check lists them"
        )
    return found


def is_one_colour(images: Tensor) -> Tensor:
    """Return which images ``[N, C, H, W]`` have one colour all over."""
    if not images.numel():
        return torch.zeros(len(images), dtype=torch.bool)
    return torch.cat([(x == x[:, :, :1, :1]).flatten(1).all(1).cpu() for x in images.split(1024)])
