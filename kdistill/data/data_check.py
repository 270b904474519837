"""``kdistill check``: what is wrong with a labelled image set, before hours are spent on it.

A duplicate is a picture with exactly the pixels of another (decoded, upright, on white, at its own
size or at the size asked for).  Pictures are alike if a 64-bit hash of their brightness gradients
differs in at most ``ALIKE_BITS`` bits: the same photograph saved again, or resized.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdistill.data import duplicates, image_tensors, picture_files
from kdistill.data.array_files import is_artefact
from kdistill.data.builtin import BUILTIN
from kdistill.data.folder_listing import Listing, Picture, list_parts
from kdistill.data.image_dataset import ImageDataset
from kdistill.data.load import load_data
from kdistill.data.picture_reader import in_parallel
from kdistill.status import status_line

ALIKE_BITS = 3
ALIKE_SIDE = 48  # smaller pictures have too few gradients for the hash to say anything
# a quarter of the hash that more pictures share (plain sky, black frames) finds no candidates
CROWD = 100


@dataclass(frozen=True)
class Finding:
    """One line of the table: what was counted, how many, whether that is wrong, and the places."""

    what: str
    count: str
    is_wrong: bool = False
    places: tuple[str, ...] = ()


@dataclass
class DataCheck:
    """What ``check_data`` has to say."""

    name: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.is_wrong for finding in self.findings)


@dataclass(frozen=True)
class _Image:
    name: str
    part: str
    label: str
    digest: bytes
    size: str
    mode: str
    gradients: int | None = None
    is_one_colour: bool = False


def check_data(spec: Any, *, size: int | None = None, quiet: bool = False) -> DataCheck:
    """Look for unreadable files, duplicates within and across splits and classes, and what would be ignored.

    Args:
        spec: What ``load_data`` takes; of a folder all files are looked at, whatever their size,
            and none stops the check.
        size: Compare pictures as they are at this side; None compares them as they are.
        quiet: Show no progress.

    Raises:
        DataError: There is no picture at all, or (for anything but a folder) data that cannot be
            loaded.
    """
    image_tensors.check_size(size)
    folder = (
        Path(spec).expanduser() if isinstance(spec, str | Path) and spec not in BUILTIN else None
    )
    if folder is not None and folder.is_dir() and not is_artefact(folder):
        return _check_folder(folder, size, quiet)
    data = load_data(spec, size=size, quiet=True, test=None)
    report = DataCheck(data.name)
    images = list(_of_arrays(data))
    _count(report, images, data.classes)
    _find_duplicates(report, images)
    report.findings += [
        Finding(warning, "", True) for warning in data.warnings if "pixel for pixel" not in warning
    ]
    return report


def _check_folder(root: Path, size: int | None, quiet: bool) -> DataCheck:
    parts = list_parts(root)
    report = DataCheck(root.resolve().name)
    images: list[_Image] = []
    unreadable: list[str] = []
    for which, listing in parts.items():
        for result in _looked_at(listing, which, size, quiet):
            unreadable.append(result) if isinstance(result, str) else images.append(result)
    _count(report, images, sorted({name for listing in parts.values() for name in listing.classes}))
    if size is None and len({image.size for image in images}) > 1:
        report.findings.append(Finding("pictures of different sizes: load them with --size", ""))
    _add(report, "unreadable files", unreadable, is_wrong=True)
    _find_duplicates(report, images)
    _add(
        report,
        "class folders without a picture",
        [str(p.root / name) for p in parts.values() for name in p.empty],
        True,
    )
    strange = [
        f"{path} ({reason})" for listing in parts.values() for path, reason in listing.strange
    ]
    _add(report, "links and special files that are not read", strange, is_wrong=True)
    _add(
        report,
        "files outside every class",
        [str(p.root / name) for p in parts.values() for name in p.outside],
    )
    ignored = sum((listing.ignored for listing in parts.values()), Counter())
    for ending, count in ignored.most_common():
        hint = (
            ' (pip install "kdistill[heif]" reads them)'
            if ending in picture_files.HEIF_SUFFIXES
            else ""
        )
        report.findings.append(Finding(f"ignored: {ending}{hint}", f"{count:,}"))
    return report


def _looked_at(
    listing: Listing, which: str, size: int | None, quiet: bool
) -> Iterable[_Image | str]:
    def look(row: int) -> _Image | str:
        return _look(listing.pictures[row], which, listing.classes, size)

    with ExitStack() as stack:
        say = None if quiet else stack.enter_context(status_line(f"checking {listing.root.name}"))
        for row, result in enumerate(in_parallel(look, len(listing.pictures), stack)):
            if say is not None:
                say(f"{row + 1:,}/{len(listing.pictures):,} pictures")
            yield result


def _look(file: Picture, which: str, classes: tuple[str, ...], size: int | None) -> _Image | str:
    name = str(file.path)
    try:
        image = picture_files.decode(file.path, name, [], size)
        with Image.open(file.path) as picture:
            shape, mode = f"{picture.width}×{picture.height}", picture.mode
    except (picture_files.Unreadable, OSError) as error:
        return f"{name} ({getattr(error, 'reason', error)})"
    plain = np.ascontiguousarray(image.numpy())
    digest = hashlib.blake2b(repr(plain.shape).encode() + plain.tobytes(), digest_size=16).digest()
    return _Image(
        name, which, classes[file.label], digest, shape, mode, gradients(image), _is_plain(image)
    )


def _is_plain(image: Tensor) -> bool:
    return bool(duplicates.is_one_colour(image[None])[0])


def gradients(image: Tensor) -> int | None:
    """Return 64 bits that say where brightness grows from left to right, or None of a picture too small or too plain for that."""
    if min(image.shape[1:]) < ALIKE_SIDE:
        return None
    grey = image.float().mean(0) if image.dtype == torch.uint8 else image.float().mean(0) * 255
    small = np.asarray(Image.fromarray(grey.numpy()).resize((9, 8), Image.Resampling.BOX))
    steps = np.diff(small, axis=1)
    if np.abs(steps).max() < 1.0:
        return None
    return int.from_bytes(np.packbits(steps > 0).tobytes(), "big")


def _of_arrays(data: ImageDataset) -> Iterable[_Image]:
    for which in ("train", "test", "validation"):
        split = getattr(data, which)
        for row, digest in enumerate([] if split is None else duplicates.digests(split.images)):
            label, shape = data.classes[int(split.labels[row])], f"{data.size}×{data.size}"
            mode, is_plain = (
                "grey" if data.channels == 1 else "colour",
                _is_plain(split.images[row]),
            )
            yield _Image(
                f"{which} image {row}", which, label, digest, shape, mode, is_one_colour=is_plain
            )


def _count(report: DataCheck, images: list[_Image], classes: Iterable[str]) -> None:
    for which, count in Counter(image.part for image in images).items():
        report.findings.append(Finding(f"{which} images", f"{count:,}"))
    in_training = Counter(image.label for image in images if image.part == "train")
    for name in classes:
        count = in_training[name]
        report.findings.append(
            Finding(f"training images of '{name}'", f"{count:,}", is_wrong=count == 0)
        )
    for what, values in (
        ("size", Counter(i.size for i in images)),
        ("mode", Counter(i.mode for i in images)),
    ):
        shown = sum(count for _, count in values.most_common(5))
        for value, count in values.most_common(5):
            report.findings.append(Finding(f"{what} {value}", f"{count:,}"))
        if len(values) > 5:
            report.findings.append(
                Finding(f"{len(values) - 5:,} other {what}s", f"{sum(values.values()) - shown:,}")
            )


def _find_duplicates(report: DataCheck, images: list[_Image]) -> None:
    by_digest: dict[bytes, list[_Image]] = defaultdict(list)
    for image in images:
        if not image.is_one_colour:
            by_digest[image.digest].append(image)
    _add(
        report,
        "images of one colour all over",
        [image.name for image in images if image.is_one_colour],
    )
    is_split_at_random = {image.part for image in images} == {"train"}
    same_pixels = [same for same in by_digest.values() if len(same) > 1]
    _add_groups(report, "duplicates", same_pixels, is_split_at_random)
    firsts = [same[0] for same in by_digest.values() if same[0].gradients is not None]
    _add_groups(report, "alike", [list(pair) for pair in _alike(firsts)], is_split_at_random)


def _add_groups(
    report: DataCheck, what: str, found: list[list[_Image]], is_split_at_random: bool
) -> None:
    """Enter every group under the worst that it is: across splits, across classes, or within one class.

    Duplicates within a class do harm where test images are split off at random: one of them may be
    trained on.
    """
    kinds: dict[str, list[str]] = {"across splits": [], "across classes": [], "within a class": []}
    for same in found:
        kind = "across splits" if len({image.part for image in same}) > 1 else "within a class"
        kind = (
            "across classes"
            if len({image.label for image in same}) > 1 and kind != "across splits"
            else kind
        )
        kinds[kind].append(
            " = ".join(image.name for image in same)
            if what == "duplicates"
            else " ~ ".join(i.name for i in same)
        )
    for kind, places in kinds.items():
        is_wrong = what == "duplicates" and (kind != "within a class" or is_split_at_random)
        _add(report, f"{what} {kind}", places, is_wrong=is_wrong)


def _alike(images: list[_Image]) -> list[tuple[_Image, _Image]]:
    """Return pairs whose hashes differ in at most ``ALIKE_BITS`` bits: they share one of four quarters in any case."""
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        for quarter in range(4):
            buckets[quarter, ((image.gradients or 0) >> (16 * quarter)) & 0xFFFF].append(row)
    pairs = set()
    for rows in buckets.values():
        if len(rows) <= CROWD:
            for at, first in enumerate(rows):
                pairs |= {
                    (first, second)
                    for second in rows[at + 1 :]
                    if _bits(images[first], images[second]) <= ALIKE_BITS
                }
    return [(images[first], images[second]) for first, second in sorted(pairs)]


def _bits(first: _Image, second: _Image) -> int:
    return ((first.gradients or 0) ^ (second.gradients or 0)).bit_count()


def _add(report: DataCheck, what: str, places: list[str], is_wrong: bool = False) -> None:
    if places:
        report.findings.append(Finding(what, f"{len(places):,}", is_wrong, tuple(places)))
