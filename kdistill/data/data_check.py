"""``kdistill check``: what is wrong with a labelled image set, before hours are spent on it.

A duplicate is a picture with exactly the pixels of another (decoded, upright, on white, at its own
size or at the size asked for).  Pictures are alike if a 64-bit hash of their brightness gradients
differs in at most ``ALIKE_BITS`` bits: the same photograph saved again, or resized.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdistill.data import image_tensors, picture_files
from kdistill.data.builtin import BUILTIN
from kdistill.data.image_dataset import ImageDataset
from kdistill.data.load import by_pixels, digests, load_data
from kdistill.data.picture_reader import in_parallel
from kdistill.data.picture_sources import Listing, Picture, list_parts
from kdistill.data.raw_data import numbered
from kdistill.data.read_source import is_artefact, is_binary
from kdistill.status import status_line

ALIKE_BITS = 3
ALIKE_SIDE = 48  # smaller pictures have too few gradients for the hash to say anything
# a quarter of the hash that more pictures share (plain sky, black frames) finds no candidates
CROWD = 100
SHOWN = 5  # sizes and modes that have lines of their own


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        what: What was counted.
        count: How many there are, as text.
        is_wrong: Whether that is wrong.
        places: Where they are.
    """

    what: str
    count: str
    is_wrong: bool = False
    places: tuple[str, ...] = ()


@dataclass
class DataCheck:
    """What ``check_data`` says of a data set."""

    name: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.is_wrong for finding in self.findings)

    def count(self, what: str, count: int, is_wrong: bool = False) -> None:
        """Add a number."""
        self.findings.append(Finding(what, f"{count:,}", is_wrong))

    def locate(self, what: str, places: list[str], is_wrong: bool = False) -> None:
        """Add places, if there are any."""
        if places:
            self.findings.append(Finding(what, f"{len(places):,}", is_wrong, tuple(places)))


@dataclass(frozen=True)
class _Image:
    """One image.

    Attributes:
        name: What it is called.
        part: Name of its split.
        label: Name of its class.
        digest: Digest of its pixels, or None of one colour all over.
        size: Width and height, as text.
        mode: Kind of its pixels.
        gradients: Hash of its brightness gradients, or None.
    """

    name: str
    part: str
    label: str
    digest: bytes | None
    size: str
    mode: str
    gradients: int | None = None


def check_data(spec: Any, *, size: int | None = None, quiet: bool = False) -> DataCheck:
    """Look for unreadable files, duplicates, and what would be ignored.

    Args:
        spec: What ``load_data`` takes; of a folder all files are read, whatever their size, and
            none stops the check.
        size: Compare pictures as they are at this side; None compares them as they are.
        quiet: Show no progress.

    Raises:
        DataError: There is no picture at all, or (for anything but a folder) data that cannot be
            loaded.
    """
    image_tensors.check_size(size)
    is_path = isinstance(spec, str | Path) and spec not in BUILTIN
    folder = Path(spec).expanduser() if is_path else None
    if folder and folder.is_dir() and not is_artefact(folder) and not is_binary(folder):
        return _check_folder(folder, size, quiet)
    data = load_data(spec, size=size, quiet=True, test=None)
    report = DataCheck(data.name)
    images = list(_images_of(data))
    _count(report, images, data.classes)
    _find_duplicates(report, images)
    for warning in data.warnings:
        if "pixel for pixel" not in warning:  # those are counted above
            report.findings.append(Finding(warning, "", True))
    return report


def _check_folder(root: Path, size: int | None, quiet: bool) -> DataCheck:
    parts = list_parts(root)
    listings = list(parts.values())
    report = DataCheck(root.resolve().name)
    images: list[_Image] = []
    unreadable: list[str] = []
    for which, listing in parts.items():
        for result in _check_pictures(listing, which, size, quiet):
            unreadable.append(result) if isinstance(result, str) else images.append(result)
    _count(report, images, sorted({name for listing in listings for name in listing.classes}))
    if size is None and len({image.size for image in images}) > 1:
        report.findings.append(Finding("pictures of different sizes: load them with --size", ""))
    report.locate("unreadable files", unreadable, is_wrong=True)
    _find_duplicates(report, images)
    empty = [str(listing.root / name) for listing in listings for name in listing.empty]
    report.locate("class folders without a picture", empty, is_wrong=True)
    strange = [place for listing in listings for place in listing.strange]
    report.locate("links and special files that are not read", strange, is_wrong=True)
    outside = [str(listing.root / name) for listing in listings for name in listing.outside]
    report.locate("files outside every class", outside)
    ignored = sum((listing.ignored for listing in listings), Counter())
    for ending, count in ignored.most_common():
        is_heif = ending in picture_files.HEIF_SUFFIXES
        hint = ' (pip install "kdistill[heif]" reads them)' if is_heif else ""
        report.count(f"ignored: {ending}{hint}", count)
    return report


def _check_pictures(
    listing: Listing, which: str, size: int | None, quiet: bool
) -> Iterator[_Image | str]:
    """Yield what is known of every picture, or the sentence that it cannot be read."""

    def check(row: int) -> _Image | str:
        return _check_picture(listing.pictures[row], which, listing.classes, size)

    with ExitStack() as stack:
        progress = None
        if not quiet:
            progress = stack.enter_context(status_line(f"checking {listing.root.name}"))
        for row, result in enumerate(in_parallel(check, len(listing.pictures), stack)):
            if progress is not None:
                progress(f"{row + 1:,}/{len(listing.pictures):,} pictures")
            yield result


def _check_picture(file: Picture, which: str, classes: list[str], size: int | None) -> _Image | str:
    name = str(file.path)
    try:
        image = picture_files.decode(file.path, name, [], size)
        with Image.open(file.path) as picture:
            shape, mode = f"{picture.width}×{picture.height}", picture.mode
    except (picture_files.Unreadable, OSError) as error:
        return f"{name} ({getattr(error, 'reason', error)})"
    (digest,) = digests(image[None])
    return _Image(name, which, classes[file.label], digest, shape, mode, gradients(image))


def gradients(image: Tensor) -> int | None:
    """Return 64 bits that say where brightness grows from left to right.

    None of a picture that is too small or too plain for that.
    """
    if min(image.shape[1:]) < ALIKE_SIDE:
        return None
    grey = image.float().mean(0) if image.dtype == torch.uint8 else image.float().mean(0) * 255
    small = np.asarray(Image.fromarray(grey.numpy()).resize((9, 8), Image.Resampling.BOX))
    steps = np.diff(small, axis=1)
    if np.abs(steps).max() < 1.0:
        return None
    return int.from_bytes(np.packbits(steps > 0).tobytes(), "big")


def _images_of(data: ImageDataset) -> Iterator[_Image]:
    size, mode = f"{data.size}×{data.size}", "grey" if data.channels == 1 else "colour"
    for which, split in data.splits().items():
        labels = [data.classes[label] for label in split.labels.tolist()]
        for row, digest in enumerate(digests(split.images)):
            yield _Image(numbered(which)(row), which, labels[row], digest, size, mode)


def _count(report: DataCheck, images: list[_Image], classes: Iterable[str]) -> None:
    for which, count in Counter(image.part for image in images).items():
        report.count(f"{which} images", count)
    in_training = Counter(image.label for image in images if image.part == "train")
    for name in classes:
        count = in_training[name]
        report.count(f"training images of '{name}'", count, is_wrong=count == 0)
    for what in ("size", "mode"):
        values = Counter(getattr(image, what) for image in images).most_common()
        for value, count in values[:SHOWN]:
            report.count(f"{what} {value}", count)
        if others := values[SHOWN:]:
            report.count(f"{len(others):,} other {what}s", sum(count for _, count in others))


def _find_duplicates(report: DataCheck, images: list[_Image]) -> None:
    plain = [image.name for image in images if image.digest is None]
    report.locate("images of one colour all over", plain)
    # duplicates within a class do harm where test images are split off at random: one of them may
    # be trained on
    is_split_at_random = {image.part for image in images} == {"train"}
    groups = by_pixels(images, lambda image: image.digest)
    for kind, same in _by_kind([group for group in groups if len(group) > 1]).items():
        places = [" = ".join(image.name for image in group) for group in same]
        is_wrong = kind != "within a class" or is_split_at_random
        report.locate(f"duplicates {kind}", places, is_wrong=is_wrong)
    pairs = _alike([group[0] for group in groups if group[0].gradients is not None])
    for kind, same in _by_kind(pairs).items():
        places = [" ~ ".join(image.name for image in pair) for pair in same]
        report.locate(f"alike {kind}", places)


def _by_kind(groups: list[list[_Image]]) -> dict[str, list[list[_Image]]]:
    """Sort groups by the worst that they are."""
    kinds = ("across splits", "across classes", "within a class")
    sorted_groups: dict[str, list[list[_Image]]] = {kind: [] for kind in kinds}
    for group in groups:
        is_across = [len({image.part for image in group}) > 1, len({x.label for x in group}) > 1]
        sorted_groups[kinds[[*is_across, True].index(True)]].append(group)
    return sorted_groups


def _alike(images: list[_Image]) -> list[list[_Image]]:
    """Return pairs whose hashes differ in at most ``ALIKE_BITS`` bits.

    They share one of four quarters in any case.
    """
    hashes = [image.gradients or 0 for image in images]
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, bits in enumerate(hashes):
        for quarter in range(4):
            buckets[quarter, (bits >> (16 * quarter)) & 0xFFFF].append(row)
    pairs = {
        (first, second)
        for rows in buckets.values()
        if len(rows) <= CROWD
        for at, first in enumerate(rows)
        for second in rows[at + 1 :]
        if (hashes[first] ^ hashes[second]).bit_count() <= ALIKE_BITS
    }
    return [[images[first], images[second]] for first, second in sorted(pairs)]
