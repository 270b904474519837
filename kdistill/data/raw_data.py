"""How sources are read, and what a reader hands over: images, labels as they are, and a name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
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
