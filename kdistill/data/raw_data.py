"""What a reader hands over: images, labels as the source writes them, and where they come from."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from kdistill.errors import DataError


def unusable(expected: object, got: object, fix: str) -> DataError:
    """Return the error of data that cannot be used, in the form of all messages."""
    return DataError(f"load_data: expected {expected}, got {got}; {fix}")


def counted(count: int, noun: str) -> str:
    """Return ``"1 image"``, ``"2,000 images"``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How sources are read.

    Attributes:
        size: Side of the images, or None for that of the source.
        quiet: Show no progress line.
        skip_unreadable: Leave out picture files that cannot be read, and say so.
        image_column: Column of a table or Hugging Face data set that holds the images, or None.
        label_column: The same for the labels.
    """

    size: int | None = None
    quiet: bool = True
    skip_unreadable: bool = False
    image_column: str | None = None
    label_column: str | None = None


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
    notes: list[str] = field(default_factory=list)


def label_values(labels: object, count: int, where: str) -> np.ndarray:
    """Return labels as ``[N]`` whole numbers or text, from any array, tensor or sequence; one-hot rows become numbers.

    Raises:
        DataError: Not one label per image, or labels that are no class (fractions, soft labels,
            missing values).
    """
    try:
        values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise unusable(
            f"one label per image in {where}", error, "give class numbers or names"
        ) from error
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind in "buif":
        one_hot = (np.sort(values, 1) == [0] * (values.shape[1] - 1) + [1]).all()
        values = values.argmax(1) if one_hot else values
    if values.ndim != 1:
        raise unusable(
            f"one label per image in {where}", list(values.shape), "give class numbers or names"
        )
    if len(values) != count:
        raise unusable(
            f"as many labels as images in {where}",
            f"{len(values):,} labels for {count:,} images",
            "match them",
        )
    return _as_text_or_int(values, where)


def _as_text_or_int(values: np.ndarray, where: str) -> np.ndarray:
    kind = values.dtype.kind
    if kind in "bui":
        return values.astype(np.int64)
    if kind == "f":
        wrong = ~np.isfinite(values) | (values != np.floor(values))
    elif kind == "O":
        wrong = np.array([not isinstance(value, str) for value in values], dtype=bool)
    else:
        wrong = np.full(len(values), kind not in "US")
    if wrong.any():
        bad = values[np.flatnonzero(wrong)[0]]
        raise unusable(
            f"labels to be whole numbers or text in {where}", bad, "give class numbers or names"
        )
    if kind == "f":
        return values.astype(np.int64)
    return np.char.decode(values, "utf-8") if kind == "S" else values.astype(str)
