"""CIFAR-10 and CIFAR-100 in their binary form.

A record is the label (of CIFAR-100 the coarse and the fine one), a byte each, and 3072 bytes: the
red, then the green, then the blue plane of an image of 32x32 pixels.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdistill.data.raw_data import RawData, RawPart, Reading, unusable
from kdistill.errors import ConfigError, did_you_mean

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
_COPY = "copy or download it again"
_PICKLED = ("data_batch_1", "batches.meta", "train", "meta")  # of the Python form


@dataclass(frozen=True, kw_only=True)
class Form:
    """One of the two sets.

    Attributes:
        train: Files of the training images.
        test: File of the test images.
        labels: Names of the labels of a record, in order, and how many classes each has.
        default: Label that is read unless another is asked for.
        names: Template of the file with the names of a label's classes.
    """

    train: tuple[str, ...]
    test: str
    labels: dict[str, int]
    default: str
    names: str


FORMS = (
    Form(
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        labels={"label": 10},
        default="label",
        names="batches.meta.txt",
    ),
    Form(
        train=("train.bin",),
        test="test.bin",
        labels={"coarse": 20, "fine": 100},
        default="fine",
        names="{}_label_names.txt",
    ),
)


def form_of(path: Path) -> Form | None:
    """Return which set the folder holds, or None for another folder."""
    if path.is_dir():
        for form in FORMS:
            if any((path / name).is_file() for name in (*form.train, form.test)):
                return form
    return None


def refuse_pickled(path: Path) -> None:
    """Refuse a folder with the Python form, which holds pickled objects.

    Raises:
        DataError: It is such a folder.
    """
    for pair in (_PICKLED[:2], _PICKLED[2:]):
        if path.is_dir() and all((path / name).is_file() for name in pair):
            fix = "pickled objects are never executed: take the binary version of the set"
            raise unusable("the .bin files of CIFAR", f"its Python version in {path}", fix)


def read_cifar(path: Path, form: Form, reading: Reading) -> RawData:
    """Read a folder of binary files; ``label_column`` chooses ``"coarse"`` labels of CIFAR-100.

    Raises:
        ConfigError: The set has no such labels.
        DataError: A file is missing or damaged.
    """
    column = reading.label_column or form.default
    if column not in form.labels:
        raise ConfigError(
            f"label_column: expected labels of {path.name}, got '{column}'; "
            f"{did_you_mean(column, list(form.labels))}"
        )
    names = _names(path / form.names.format(column), form.labels[column])
    train = _part([path / name for name in form.train], form, column, names)
    return RawData(train, _part([path / form.test], form, column, names))


def _part(files: list[Path], form: Form, column: str, names: tuple[str, ...] | None) -> RawPart:
    records = np.concatenate([_records(file, form) for file in files])
    labels = records[:, list(form.labels).index(column)].astype(np.int64)
    count = form.labels[column]
    if labels.max() >= count:
        row = int(labels.argmax())
        got = f"{labels[row]} (image {row})"
        raise unusable(f"labels 0 to {count - 1} in {files[0].parent.name}", got, _COPY)
    pixels = np.ascontiguousarray(records[:, len(form.labels) :]).reshape(-1, *SHAPE)
    return RawPart(torch.from_numpy(pixels), labels, names)


def _records(path: Path, form: Form) -> np.ndarray:
    """Return the records of a file, uint8 ``[N, labels + 3072]``."""
    if not path.is_file():
        raise unusable(f"{path.name} in {path.parent}", "no such file", "put all its files there")
    width, size = len(form.labels) + PIXELS, path.stat().st_size
    if size == 0 or size % width:
        got = f"{size:,} bytes"
        raise unusable(f"whole records of {width:,} bytes in {path.name}", got, _COPY)
    return np.fromfile(path, dtype=np.uint8).reshape(-1, width)


def _names(path: Path, count: int) -> tuple[str, ...] | None:
    """Return the class names of a file with one on each line, or None where there is no file."""
    if not path.is_file():
        return None
    names = tuple(filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())))
    if len(names) != count:
        raise unusable(f"{count} names in {path.name}", len(names), _COPY)
    return names
