"""``load_data``: any labelled image set to an ``ImageDataset``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from kdistill.data import pixels
from kdistill.data.builtin import BUILTIN, read_builtin
from kdistill.data.dataset import ImageDataset, Split
from kdistill.data.files import READERS, read_file
from kdistill.data.folder import read_folder
from kdistill.data.labels import map_labels
from kdistill.data.objects import is_hugging_face, read_dataset, read_hugging_face, read_mapping, read_pair
from kdistill.data.raw import Part, Raw, unusable
from kdistill.data.splits import stratified_split
from kdistill.data.streamed import StreamedImages, same_channels
from kdistill.errors import ConfigError, did_you_mean
from kdistill.escape import printable
from kdistill.transforms import KINDS, fit

TEST_FRACTION = 0.2  # of a source that has no test images of its own


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
    stream: bool = False,
) -> ImageDataset:
    """Load a labelled image set and say on standard error what was understood.

    Args:
        spec: A built-in name (``"mnist5k"``, ``"digits"``, ``"photo-patches"``); a folder ``root/<class>/*`` or
            ``root/{train,val,test}/<class>/*``; a file ``.npz``, ``.safetensors`` or ``.pt``; a pair ``(X, y)`` or dict of
            arrays or tensors (uint8 ``[N, H, W, C]``, float ``[N, C, H, W]``, grey ``[N, H, W]``); a torch ``Dataset``; a
            Hugging Face ``Dataset`` or ``DatasetDict``.
        size: Side of the images; others are scaled so that the short side fits, and the middle is cropped.  None keeps the
            source's, which must then be square and all the same.
        test: Where the test images are if not in ``spec``: anything that ``spec`` can be, or a share in (0, 1) of the images.
            None takes the source's own, or splits off a stratified fifth.
        normalisation: ``"standard"`` (mean and std of each channel), ``"zca"`` or ``"none"``; fitted on the training images.
        seed: Of the split into training and test images, where the source has none.
        quiet: Do not print the summary.
        classes: Class names, in the order of the labels; None takes them from the source, or from the labels.
        num_classes: Number of classes K, for whole-number labels that must lie in 0..K-1.
        image_column: Of a Hugging Face data set, if it is not clear.
        label_column: The same.
        name: Short name of the set; None takes it from the source.
        licence: Of the data; None takes it from the source where it says so.
        stream: Do not hold the images in memory: read them whenever they are looked at.  For ``kdistill.score`` alone; of a
            folder, arrays (such as memory-mapped ones) or a torch ``Dataset`` whose items do not change.

    Returns:
        Images float32 ``[N, C, H, W]`` in [0, 1], labels int64 0..K-1, class names, the fitted transform, a fingerprint.

    Raises:
        ConfigError: Unknown name or option, or options that contradict each other.
        DataError: Images or labels that cannot be used; the message names the first one.
        MissingExtraError: The package of a built-in set is not installed.

    Cost: one pass over the images for each of reading, conversion, fingerprint and fit.  At the peak the images as read (uint8
    where possible) and up to two float32 copies are held; one stays.
    """
    pixels.check_size(size)
    if normalisation not in KINDS:
        raise ConfigError(
            f"normalisation: expected a kind of transform, got '{normalisation}'; {did_you_mean(normalisation, list(KINDS))}"
        )
    if num_classes is not None and num_classes < 2:
        raise ConfigError(f"num_classes: expected at least 2, got {num_classes}; leave it out to count the labels")
    read = partial(_read_streamed, size=size) if stream else partial(_read, size=size, columns=(image_column, label_column))
    raw = read(spec)
    fraction = TEST_FRACTION
    if isinstance(test, float):
        raw, fraction = _check_splittable(raw), test
    elif test is not None:
        other = read(test)
        raw = replace(raw, test=other.test or other.train, notes=[*raw.notes, *(n for n in other.notes if n not in raw.notes)])
    splits, names = _splits(raw, size, classes, num_classes)
    if "test" not in splits:
        kept, withheld = stratified_split(splits["train"].labels, fraction, seed=seed, purpose="split test")
        some = f"{fraction:.0%} of the images split off as test images (seed {seed})"
        raw.notes.append(some if len(withheld) else "no image split off for testing, as no class has two")
        splits = {**splits, "train": splits["train"].take(kept), "test": splits["train"].take(withheld)}
    data = ImageDataset(
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        classes=names,
        name=name or raw.name,
        source=raw.source,
        licence=licence or raw.licence,
        transform=fit(normalisation, splits["train"].images),
        notes=tuple(raw.notes),
    )
    if not quiet:
        announce(data)
    return data


def announce(data: ImageDataset) -> None:
    """Print ``data.describe()`` on standard error."""
    Console(stderr=True).print(printable(data.describe()), markup=False, highlight=False, soft_wrap=True)


def _read_streamed(spec: Any, size: int | None) -> Raw:
    notes = ["read from the source whenever they are looked at"]
    if isinstance(spec, str | Path) and spec not in BUILTIN and Path(spec).expanduser().is_dir():
        path = Path(spec).expanduser()
        raw = replace(read_folder(path, size, stream=True), name=path.resolve().name, source=str(spec))
        return replace(raw, notes=[*raw.notes, *notes])
    if not isinstance(spec, str | Path | Mapping) and not is_hugging_face(spec):
        if _is_pair(spec):
            return Raw(read_pair(spec[0], spec[1], size, notes=notes, stream=True), name="arrays", source="arrays", notes=notes)
        if hasattr(spec, "__len__") and hasattr(spec, "__getitem__"):
            kind = type(spec).__name__
            part = read_dataset(spec, size, notes=notes, stream=True)
            return Raw(part, name=kind.lower(), source=f"torch data set {kind}", notes=notes)
    got = repr(spec) if isinstance(spec, str | Path) else type(spec).__name__
    raise ConfigError(f"stream: expected a folder of pictures, (X, y) arrays or a torch Dataset, got {got}; leave stream out")


def _read(spec: Any, size: int | None, columns: tuple[str | None, str | None]) -> Raw:
    image_column, label_column = columns
    if isinstance(spec, str | Path):
        raw = _read_path(spec, size)
    elif is_hugging_face(spec):
        raw = read_hugging_face(spec, size, image_column=image_column, label_column=label_column)
        return replace(raw, source="Hugging Face data set")
    elif isinstance(spec, Mapping):
        raw = replace(read_mapping(spec, size, where="the dict"), name="arrays", source="arrays")
    elif _is_pair(spec):
        notes: list[str] = []
        raw = Raw(read_pair(spec[0], spec[1], size, notes=notes), name="arrays", source="arrays", notes=notes)
    elif hasattr(spec, "__len__") and hasattr(spec, "__getitem__"):
        notes = []
        kind = type(spec).__name__
        raw = Raw(read_dataset(spec, size, notes=notes), name=kind.lower(), source=f"torch data set {kind}", notes=notes)
    else:
        raise unusable(
            "a name, a path, (X, y) arrays or a data set with a length",
            type(spec).__name__,
            "see the documentation of load_data",
        )
    for option, value in (("image_column", image_column), ("label_column", label_column)):
        if value is not None:
            raise ConfigError(f"{option}: expected a Hugging Face data set, got {raw.source}; leave {option} out")
    return raw


def _read_path(spec: str | Path, size: int | None) -> Raw:
    if not str(spec).strip():
        raise unusable("a name or a path", repr(str(spec)), "'.' is the current folder")
    if spec in BUILTIN:
        return _resized(read_builtin(str(spec)), size)
    path = Path(spec).expanduser()
    if not path.exists():
        looks_like_path = isinstance(spec, Path) or path.suffix.lower() in READERS or any(c in spec for c in "/\\~.")
        if looks_like_path:
            raise unusable("an existing file or folder", spec, "check the path")
        return read_builtin(str(spec))  # unknown: says so and suggests the nearest
    if path.is_dir():
        return replace(read_folder(path, size), name=path.resolve().name, source=str(spec))
    return replace(read_file(path, size), name=path.stem, source=str(spec))


def _is_pair(spec: Any) -> bool:
    """Return whether ``spec`` is ``(X, y)``; a list of two could also be a data set of two items."""
    if not isinstance(spec, tuple | list) or len(spec) != 2:
        return False
    images, labels = spec
    return isinstance(spec, tuple) or (getattr(images, "ndim", 0) >= 3 and 1 <= getattr(labels, "ndim", 0) <= 2)


def _resized(raw: Raw, size: int | None) -> Raw:
    if size is None:
        return raw

    def fitted(part: Part | None) -> Part | None:
        return None if part is None else replace(part, images=pixels.square(part.images, size))

    return replace(raw, train=fitted(raw.train), test=fitted(raw.test))


def _check_splittable(raw: Raw) -> Raw:
    if raw.test is not None:
        raise ConfigError("test: expected no share, as the source has test images of its own, got one; leave test out")
    return raw


def _splits(
    raw: Raw, size: int | None, classes: Sequence[str] | None, num_classes: int | None
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Settle labels, channels and value range over all parts together."""
    parts = {"train": raw.train, "test": raw.test, "validation": raw.validation}
    present = {which: part for which, part in parts.items() if part is not None}
    labels, names = map_labels(present, classes=classes, num_classes=num_classes)

    def image_name(which: str, row: int) -> str:
        paths = present[which].paths
        return paths[row] if paths else f"{which} image {row}"

    found = {which: part.images for which, part in present.items()}
    is_streamed = isinstance(raw.train.images, StreamedImages)
    images = same_channels(found) if is_streamed else pixels.to_unit_range(found, image_name, raw.notes)
    return {which: Split(images[which], labels[which]) for which in present}, names
