"""``load_data``: any labelled image set to an ``ImageDataset``, with warnings about duplicates.

A duplicate is an image with exactly the pixels of another, as loaded.  Images of one colour all
over show nothing that could leak, and do not count.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import Tensor

from kdistill.data import image_tensors
from kdistill.data.image_dataset import ImageDataset, Split
from kdistill.data.raw_data import RawData, Reading, counted, map_labels, numbered
from kdistill.data.read_source import read_source
from kdistill.data.splits import stratified_split
from kdistill.errors import ConfigError
from kdistill.escape import printable
from kdistill.options import Words, check_value
from kdistill.transforms import KINDS, fit

T = TypeVar("T")
Place = tuple[str, int]  # part and row

TEST_FRACTION = 0.2  # of a source that has no test images of its own
FEW = 10  # images of a class below which the split into training and test images is a warning
CHUNK = 1024  # images that are compared with their first pixel at a time
_GLYPHS = re.compile(r"mnist|svhn|digit|letter|glyph|alphabet|omniglot", re.IGNORECASE)


def load_data(
    spec: Any,
    *,
    size: int | None = None,
    test: Any = None,
    normalisation: str = "standard",
    seed: int = 0,
    quiet: bool = False,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    mirrors: bool | None = None,
    skip_unreadable: bool = False,
    stream: bool = False,
) -> ImageDataset:
    """Load a labelled image set and say on standard error what was understood.

    Args:
        spec: A built-in name (``"mnist5k"``, ``"digits"``, ``"photo-patches"``); a folder
            ``root/<class>/*`` or ``root/{train,val,test}/<class>/*``; a folder with the files of
            MNIST's format (IDX) or of the binary version of CIFAR; a file ``.npz``,
            ``.safetensors`` or ``.pt``; a pair ``(X, y)`` or dict of arrays or tensors (uint8 ``[N,
            H, W, C]``, float ``[N, C, H, W]``, grey ``[N, H, W]``); paths of pictures with labels:
            a CSV file, a data frame, ``(paths, labels)``, or ``paths`` in one folder per class; a
            torch ``Dataset``; a Hugging Face ``Dataset`` or ``DatasetDict``; a distilled set or its
            folder.
        size: Side of the images; others are scaled so that the short side fits, and the middle is
            cropped.  None keeps the source's, which must then be square and all the same.
        test: Where the test images are if not in ``spec``: anything that ``spec`` can be, or a
            share in (0, 1) of the images, or 0 for none.  None takes the source's own, else its
            validation part, else splits off a stratified fifth; of a distilled set nothing is split
            off.
        normalisation: ``"standard"`` (mean and std of each channel), ``"zca"`` or ``"none"``;
            fitted on the training images.
        seed: Seed of the split into training and test images, where the source has none.
        quiet: Do not print the summary, warnings and progress.
        classes: Class names, in the order of the labels; None takes them from the source, or from
            the labels.
        num_classes: Number of classes K, for whole-number labels that must lie in 0..K-1.
        image_column: Column of the images of a Hugging Face data set, data frame or CSV file, if it
            is not clear.
        label_column: Column of the labels, if it is not clear; ``"coarse"`` or ``"fine"`` (the
            default) of CIFAR-100.
        name: Short name of the set; None takes it from the source.
        licence: Licence of the data; None takes it from the source where it says so.
        mirrors: Whether a mirrored image belongs to the same class: augmentation mirrors only then.
            None guesses: not for the built-in digits, and not where name or classes look like
            digits or letters; a guess of no is said.
        skip_unreadable: Leave out picture files that cannot be read, and say so; otherwise they are
            refused, all at once.
        stream: Do not hold the images in memory: read them whenever they are used.  For
            ``kdistill.score`` alone; of pictures in files, arrays (such as memory-mapped ones) or a
            torch ``Dataset`` whose items do not change.

    Returns:
        Images float32 ``[N, C, H, W]`` in [0, 1], labels int64 0..K-1, class names, the fitted
        transform, a fingerprint.

    Raises:
        ConfigError: Unknown name or option, or options that contradict each other.
        DataError: Images or labels that cannot be used; the message names the first one.
        MissingExtraError: The package of a built-in set is not installed.

    Cost: one pass over the images for each of reading, conversion, fingerprint and fit.  At the
        peak the images as read (uint8 where possible) and up to two float32 copies are held; one
        stays.
    """
    image_tensors.check_size(size)
    check_value("normalisation", normalisation, Words(tuple(KINDS)))
    if mirrors is not None and not isinstance(mirrors, bool):
        raise ConfigError(
            f"mirrors: expected True, False or None, got {mirrors!r}; leave it out to guess"
        )
    if num_classes is not None and num_classes < 2:
        raise ConfigError(
            f"num_classes: expected at least 2, got {num_classes}; leave it out to count the labels"
        )
    reading = Reading(
        size=size,
        quiet=quiet,
        skip_unreadable=skip_unreadable,
        image_column=image_column,
        label_column=label_column,
        stream=stream,
    )
    raw, fraction = _with_test(read_source(spec, reading), test, reading)
    splits, names = _splits(raw, classes, num_classes, reading)
    warnings = (
        [] if stream else image_tensors.dark_depths([part.images for part in raw.parts().values()])
    )
    if "test" not in splits:
        splits = _split_off(splits, names, fraction, seed, reading.notes, warnings)
    if not stream:
        warnings += duplicate_warnings(splits)
    called = name or raw.name
    if mirrors is None:
        mirrors = _mirrors(called, names, splits["train"], reading.notes)
    data = ImageDataset(
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        classes=names,
        name=called,
        source=raw.source,
        licence=licence or raw.licence,
        transform=fit(normalisation, splits["train"].images),
        mirrors=mirrors,
        notes=tuple(reading.notes),
        warnings=tuple(warnings),
    )
    if not quiet:
        announce(data)
    return data


def announce(data: ImageDataset) -> None:
    """Print ``data.describe()`` on standard error, and every warning on a line of its own."""
    for line in (data.describe(), *(f"warning: {warning}" for warning in data.warnings)):
        Console(stderr=True).print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _with_test(raw: RawData, test: Any, reading: Reading) -> tuple[RawData, float]:
    """Return the source with the test part that was asked for.

    The second value is the share to split off where there is none.
    """
    if isinstance(test, int | float) and not isinstance(test, bool):
        if raw.test is not None:
            raise ConfigError(
                "test: expected no share, as the source has test images of its own, got one; "
                "leave test out"
            )
        return raw, float(test)
    if test is not None:
        other = read_source(test, reading)
        reading.notes[:] = dict.fromkeys(reading.notes)  # those of both once
        return replace(raw, test=other.test or other.train), TEST_FRACTION
    if raw.test is None and raw.validation is not None:
        reading.notes.append("the validation images serve as the test images")
        return replace(raw, test=raw.validation, validation=None), TEST_FRACTION
    return raw, 0.0 if raw.is_distilled else TEST_FRACTION


def _split_off(
    splits: dict[str, Split],
    names: tuple[str, ...],
    fraction: float,
    seed: int,
    notes: list[str],
    warnings: list[str],
) -> dict[str, Split]:
    """Return the splits with test images taken from the training images; none of a share of 0."""
    train = splits["train"]
    if fraction == 0.0:
        notes.append("all of them for training, none for testing")
        return {**splits, "test": train.take(torch.zeros(0, dtype=torch.int64))}
    rest, chosen = stratified_split(train.labels, fraction, seed=seed, purpose="split test")
    some = f"{fraction:.0%} of the images split off as test images (seed {seed})"
    notes.append(some if len(chosen) else "no image split off for testing, as no class has two")
    counts = torch.bincount(train.labels, minlength=len(names))
    smallest = int(counts.argmin())
    if len(chosen) and int(counts[smallest]) < FEW:
        warnings.append(
            f"{len(chosen):,} of {len(train):,} images are held out for testing, and no more than "
            f"{int(counts[smallest])} images of '{names[smallest]}' are there; name test images "
            "with test=, or take all for training with test=0"
        )
    return {**splits, "train": train.take(rest), "test": train.take(chosen)}


def _mirrors(name: str, names: tuple[str, ...], train: Split, notes: list[str]) -> bool:
    """Guess whether a mirrored image belongs to the same class; digits and letters do not."""
    are_digits = names == tuple("0123456789")
    are_glyphs = len(names) > 1 and all(len(each) == 1 and each.isalnum() for each in names)
    are_letters = are_glyphs and any(map(str.isalpha, names))
    is_named = _GLYPHS.search(name) is not None and "fashion" not in name.lower()
    if is_named or (train.images.shape[1] == 1 and (are_digits or are_letters)):
        notes.append(
            "not mirrored, as these look like digits or letters (mirrors=True if they may be)"
        )
        return False
    return True


def _splits(
    raw: RawData, classes: Sequence[str] | None, num_classes: int | None, reading: Reading
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Settle labels, channels and value range over all parts together."""
    parts = raw.parts()
    labels, names = map_labels(parts, classes=classes, num_classes=num_classes)
    images = {which: part.images for which, part in parts.items()}
    image_tensors.check_shapes(images)
    if reading.stream:
        settled = image_tensors.same_channels(list(images.values()))
    else:
        settled = image_tensors.to_unit_range(parts, reading.notes)
    return {
        which: Split(pixels, labels[which], part.paths)
        for (which, part), pixels in zip(parts.items(), settled, strict=True)
    }, names


def digests(images: Tensor) -> list[bytes | None]:
    """Return 16 bytes per image that are equal for equal pixels; None for one of one colour.

    Cost: about a second per gigabyte of float32 pixels.
    """
    result: list[bytes | None] = []
    for chunk in images.split(CHUNK):
        chunk = chunk.detach().cpu().contiguous()
        has_one_colour = (chunk == chunk[:, :, :1, :1]).flatten(1).all(1).tolist()
        for image, is_plain in zip(chunk.numpy(), has_one_colour, strict=True):
            content = repr(image.shape).encode() + image.tobytes()
            result.append(None if is_plain else hashlib.blake2b(content, digest_size=16).digest())
    return result


def by_pixels(images: Iterable[T], digest: Callable[[T], bytes | None]) -> list[list[T]]:
    """Return groups of images with equal pixels, in the order of the first of each.

    An image that is there once is a group of its own; images without a digest are in none.
    """
    groups: dict[bytes, list[T]] = defaultdict(list)
    for image in images:
        if (own := digest(image)) is not None:
            groups[own].append(image)
    return list(groups.values())


def duplicate_warnings(splits: Mapping[str, Split]) -> list[str]:
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
