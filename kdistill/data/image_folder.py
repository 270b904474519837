"""A folder of pictures: one folder per class, or such folders under ``train``, ``val`` and ``test``."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from kdistill.data import picture_files, streamed_images
from kdistill.data.folder_listing import Listing, Picture, list_parts
from kdistill.data.picture_reader import PictureReader
from kdistill.data.raw_data import RawData, RawPart, ReadOptions

MARKER = ".kdistill.json"  # in a folder that ``DistilledDataset.to_imagefolder`` wrote


def read_folder(root: Path, options: ReadOptions, *, stream: bool = False) -> RawData:
    """Read ``root/<class>/**`` or ``root/{train,val,test}/<class>/**``; classes are sorted by name, as torchvision does.

    With ``stream`` pictures are decoded once now, and again whenever they are looked at.

    Raises:
        DataError: No class folder, no picture, pictures that cannot be read (all are named), or
            different sizes without a size.
    """
    notes: list[str] = []
    parts = {}
    for which, listing in list_parts(root).items():
        notes += listing.notes(which)
        reader = PictureReader(options, notes, listing.root)
        parts[which] = _streamed_part(listing, reader) if stream else _part(listing, reader)
    is_distilled = (root / MARKER).is_file()
    return RawData(
        parts["train"],
        parts.get("test"),
        parts.get("validation"),
        is_distilled=is_distilled,
        notes=notes,
    )


def _part(listing: Listing, reader: PictureReader) -> RawPart:
    rows, images = reader.read(listing.pictures)
    return _labelled(listing, [listing.pictures[row] for row in rows], images)


def _streamed_part(listing: Listing, reader: PictureReader) -> RawPart:
    readable: list[Picture] = []
    size = reader.options.size

    def first() -> Iterator[Tensor]:
        for row, image in reader.each(listing.pictures):
            readable.append(listing.pictures[row])
            yield image

    def one(row: int) -> Tensor:
        return picture_files.decode(readable[row].path, name(row), [], size)

    def name(row: int) -> str:
        return str(readable[row].path)

    images = streamed_images.of_items(one, first(), size, name)
    return _labelled(listing, readable, images)


def _labelled(listing: Listing, files: list[Picture], images: Tensor) -> RawPart:
    labels = np.array([file.label for file in files], dtype=np.int64)
    paths = tuple(str(file.path) for file in files)
    # a class whose pictures are all unreadable is dropped, as one without pictures is
    return RawPart(
        images,
        labels,
        listing.classes,
        present_only=len(files) < len(listing.pictures),
        paths=paths,
    )
