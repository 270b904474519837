"""Images and labels as readers hand them over, and labels of any kind as numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kdistill.errors import ConfigError, DataError, did_you_mean

Name = Callable[[int], str]  # row number to what messages call the image


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the sources of a data set are read, and what is said about them.

    Attributes:
        size: Side of the images, or None for that of the source.
        quiet: Show no progress line.
        skip_unreadable: Leave out picture files that cannot be read, and say so.
        image_column: Column of a table or Hugging Face data set that holds the images, or None.
        label_column: Column that holds the labels, or None.
        stream: Read images whenever they are used, and do not hold them.
        notes: What was understood or changed, one phrase each; readers append to it.
    """

    size: int | None = None
    quiet: bool = True
    skip_unreadable: bool = False
    image_column: str | None = None
    label_column: str | None = None
    stream: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class RawPart:
    """One split as its source has it.

    Attributes:
        images: ``[N, C, H, W]``, uint8, float64 in 0..1, or float32 whose range is not settled yet.
        labels: ``[N]``, whole numbers or text.
        names: Class names if the source has them; number ``k`` in ``labels`` then means
            ``names[k]``.
        present_only: Drop names that no image has: the part is a subset of a larger set.
        paths: What each image is called in messages, or None for its row number.
    """

    images: Tensor
    labels: np.ndarray
    names: tuple[str, ...] | None = None
    present_only: bool = False
    paths: tuple[str, ...] | None = None

    def name(self, where: str, row: int) -> str:
        """Return what messages call an image of the part."""
        return self.paths[row] if self.paths else numbered(where)(row)


@dataclass(frozen=True, eq=False)
class RawData:
    """A source, read; of one that is itself a distilled set, no test images are split off."""

    train: RawPart
    test: RawPart | None = None
    validation: RawPart | None = None
    name: str = "data"
    source: str = ""
    licence: str = "unknown"
    is_distilled: bool = False

    def parts(self) -> dict[str, RawPart]:
        """Return the splits that the source has, by name."""
        parts = {"train": self.train, "test": self.test, "validation": self.validation}
        return {which: part for which, part in parts.items() if part is not None}


def unusable(expected: object, got: object, fix: str) -> DataError:
    """Return the error of data that cannot be used, in the form of all messages."""
    return DataError(f"load_data: expected {expected}, got {got}; {fix}")


def counted(count: int, noun: str) -> str:
    """Return ``"1 image"``, ``"2,000 images"``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def numbered(where: str) -> Name:
    """Return the names of images that are in no files of their own."""
    return lambda row: f"{where} image {row}"


def choose_column(
    option: str, asked: str | None, candidates: Sequence[str], columns: Sequence[str], where: str
) -> str:
    """Return the column that is asked for, else the only candidate.

    Args:
        option: ``"image_column"`` or ``"label_column"``.
        asked: Its value.
        candidates: Columns that look right.
        columns: All columns.
        where: What messages call the table.

    Raises:
        ConfigError: The column that is asked for is not there, or there are several candidates.
        DataError: There is none.
    """
    if asked is not None and asked not in columns:
        raise ConfigError(
            f"{option}: expected a column of {where}, got '{asked}'; "
            f"{did_you_mean(asked, list(columns))}"
        )
    if asked is None and not candidates:
        noun = {"image_column": "images or picture paths", "label_column": "labels"}[option]
        raise unusable(
            f"a column of {noun} in {where}", f"the columns {columns}", f"name it with {option}="
        )
    if asked is None and len(candidates) > 1:
        raise ConfigError(f"{option}: expected one column, got {candidates}; choose with {option}=")
    return asked or candidates[0]


def label_values(labels: object, count: int, where: str) -> np.ndarray:
    """Return labels as whole numbers or text ``[N]``.

    Args:
        labels: Any array, tensor or sequence; one-hot rows become numbers.
        count: Number of images.
        where: Part of the data, for messages.

    Raises:
        DataError: Not one label per image, or labels that are no class (fractions, soft labels,
            missing values).
    """
    one_each, fix = f"one label per image in {where}", "give class numbers or names"
    try:
        values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise unusable(one_each, error, fix) from error
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    elif values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind in "buif":
        is_one_hot = (np.sort(values, 1) == [0] * (values.shape[1] - 1) + [1]).all()
        values = values.argmax(1) if is_one_hot else values
    if values.ndim != 1:
        raise unusable(one_each, list(values.shape), fix)
    if len(values) != count:
        got = f"{len(values):,} labels for {count:,} images"
        raise unusable(f"as many labels as images in {where}", got, "match them")
    kind = values.dtype.kind
    if kind == "f":
        is_label = np.isfinite(values) & (values == np.floor(values))
    elif kind == "O":
        is_label = np.array([isinstance(value, str) for value in values], dtype=bool)
    else:
        is_label = np.full(len(values), kind in "buiUS")
    if not is_label.all():
        got = values[np.flatnonzero(~is_label)[0]]
        raise unusable(f"labels to be whole numbers or text in {where}", got, fix)
    if kind == "S":
        return np.char.decode(values, "utf-8")
    return values.astype(np.int64 if kind in "buif" else str)


def map_labels(
    parts: dict[str, RawPart],
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Number the classes.

    The names come from ``classes``, else from the source, else they are ``"0".."K-1"`` if
    ``num_classes`` is given, else the distinct labels of the training part become the classes,
    sorted.  Where the source has names too, ``classes`` reorders them if it holds the same ones and
    renames them otherwise.

    Args:
        parts: ``"train"`` and others, as read.
        classes: Names in order; labels are then numbers into it, or names out of it.
        num_classes: K; labels must then lie in 0..K-1.

    Returns:
        int64 labels of every part, and the class names.

    Raises:
        ConfigError: ``classes`` and ``num_classes`` disagree, or a name stands twice.
        DataError: A label outside the classes, one class only, or a class without a training image.
    """
    train = parts["train"]
    if not len(train.labels):
        raise unusable("training images", "none", "add images")
    names = tuple(map(str, classes)) if classes is not None else train.names
    if num_classes is not None and names is not None and len(names) != num_classes:
        raise ConfigError(
            f"num_classes: expected {len(names)} as there are class names, got {num_classes}; "
            "leave it out"
        )
    if names is not None and len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"classes: expected distinct names, got '{twice}' twice; rename one")
    if names is None and num_classes is not None:
        names = tuple(map(str, range(num_classes)))
    if names is None:
        keys = np.unique(train.labels)
        names = tuple(map(str, keys.tolist()))
        labels = {which: _positions(part, keys, which) for which, part in parts.items()}
    else:
        labels = {which: _by_name(part, names, train.names, which) for which, part in parts.items()}
        if train.present_only and classes is None:
            present = np.unique(labels["train"].numpy())
            labels = {
                which: _positions(replace(part, labels=labels[which].numpy()), present, which)
                for which, part in parts.items()
            }
            names = tuple(names[k] for k in present)
    if len(names) < 2:
        raise unusable("at least 2 classes", f"1 ('{names[0]}')", "add images of another class")
    counts = torch.bincount(labels["train"], minlength=len(names))
    empty = [names[k] for k in (counts == 0).nonzero().squeeze(1)]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        got = f"none of '{empty[0]}'{more}"
        raise unusable("training images of every class", got, "add some or drop the class")
    return labels, names


def _positions(part: RawPart, keys: np.ndarray, where: str) -> Tensor:
    """Return the position of every label in ``keys``, which are sorted and not empty."""
    if part.labels.dtype.kind != keys.dtype.kind:
        kinds = {"U": "text", "i": "numbers"}
        ours, theirs = kinds[part.labels.dtype.kind], kinds[keys.dtype.kind]
        got = f"{ours} where the training labels are {theirs}"
        raise unusable(f"the labels of {where} to be of one kind", got, "use one kind for both")
    at = np.searchsorted(keys, part.labels).clip(max=len(keys) - 1)
    _refuse(part, keys[at] != part.labels, where, "a class of the training images")
    return torch.from_numpy(at.astype(np.int64))


def _by_name(
    part: RawPart, names: tuple[str, ...], source_names: tuple[str, ...] | None, where: str
) -> Tensor:
    """Return the position of every label in ``names``.

    A label is a name or, through the names of the part, a number.
    """
    own = part.names or names
    if part.labels.dtype.kind != "U":
        is_outside = (part.labels < 0) | (part.labels >= len(own))
        _refuse(part, is_outside, where, f"a label in 0..{len(own) - 1}")
        if own == source_names and len(own) == len(names) and not set(own) <= set(names):
            return torch.from_numpy(part.labels)  # classes= gives other names to the same numbers
        part = replace(part, labels=np.array(own)[part.labels])
    index = {name: k for k, name in enumerate(names)}
    at = np.array([index.get(name, -1) for name in part.labels.tolist()], dtype=np.int64)
    _refuse(part, at < 0, where, "one of the class names")
    return torch.from_numpy(at)


def _refuse(part: RawPart, is_wrong: np.ndarray, where: str, expected: str) -> None:
    """Raise DataError if a label is wrong, with the name of the first image."""
    if is_wrong.any():
        row = int(np.flatnonzero(is_wrong)[0])
        count = counted(int(is_wrong.sum()), "image")
        got = f"{part.labels[row].item()!r} ({part.name(where, row)}; {count} in all)"
        raise unusable(expected, got, "correct or remove them")
