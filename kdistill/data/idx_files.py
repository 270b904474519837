"""MNIST and the sets that come in its format: Fashion-MNIST, KMNIST, EMNIST (IDX files).

A set is ``<stem>-images-idx3-ubyte`` and ``<stem>-labels-idx1-ubyte`` for training and for testing,
each as it is or gzipped.  A file is two zero bytes, the code of its type, the number of its axes,
the lengths of the axes as big-endian whole numbers, and the values.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits"; for EMNIST, whose
images are stored column by column, Cohen, Afshar, Tapson and van Schaik, "EMNIST: extending MNIST
to handwritten letters", 2017.
"""

import gzip
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdistill.data.raw_data import RawData, RawPart, Reading, unusable
from kdistill.files.bounded_read import allowed_nbytes

UBYTE = 0x08  # code of the only type that these sets have
AXES = {"images": 3, "labels": 1}
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
FASHION += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# Fashion-MNIST has the file names of MNIST: its first training labels tell them apart
FASHION_BEGINS = (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)
_IMAGES = re.compile(r"(?P<stem>.+)-images[-.]idx3-ubyte(\.gz)?")
_PARTS = {"train": ("train",), "test": ("t10k", "test")}  # how a stem ends
_COPY = "copy or download it again"


@dataclass(frozen=True)
class IdxSet:
    """The stems of one set.

    Attributes:
        folder: Where its files are.
        train: Stem of the training files.
        test: Stem of the test files, or None.
    """

    folder: Path
    train: str
    test: str | None


def is_idx(path: Path) -> bool:
    """Return whether ``path`` is a folder with IDX files of images, or one such file."""
    if path.is_dir():
        return any(_IMAGES.fullmatch(file.name) for file in path.iterdir())
    return _IMAGES.fullmatch(path.name) is not None


def read_idx(path: Path, reading: Reading) -> RawData:
    """Read the set in a folder, or the one that a file of training images belongs to.

    Raises:
        DataError: Several sets in the folder, a file that is missing, damaged or of another type,
            or labels that do not fit the images.
    """
    idx = _set_of(path)
    names = _mapped_names(idx)
    if idx.train.lower().startswith("emnist"):
        reading.notes.append("rows and columns exchanged, as EMNIST stores columns first")
    train = _part(idx, idx.train, names)
    if names is None and tuple(train.labels[: len(FASHION_BEGINS)]) == FASHION_BEGINS:
        names = dict(enumerate(FASHION))
        train = _part(idx, idx.train, names)
    return RawData(train, _part(idx, idx.test, names) if idx.test else None)


def _set_of(path: Path) -> IdxSet:
    """Return the stems of the set at ``path``."""
    folder = path if path.is_dir() else path.parent
    stems = sorted(
        {match["stem"] for file in folder.iterdir() if (match := _IMAGES.fullmatch(file.name))}
    )
    training = [stem for stem in stems if stem.lower().endswith(_PARTS["train"])]
    if not path.is_dir():
        asked = _IMAGES.fullmatch(path.name)["stem"]  # type: ignore[index]
        training = [asked] if asked in training else []
    if len(training) != 1:
        got = ", ".join(training or stems)
        fix = "name the file of its training images instead of the folder"
        raise unusable(f"IDX files of one training set in {path}", got, fix)
    (train,) = training
    before = train[: -len("train")]
    tests = [stem for stem in stems if stem in [before + end for end in _PARTS["test"]]]
    return IdxSet(folder, train, tests[0] if tests else None)


def _part(idx: IdxSet, stem: str, names: dict[int, str] | None) -> RawPart:
    images = read_array(_file(idx.folder, stem, "images"), "images")
    labels = read_array(_file(idx.folder, stem, "labels"), "labels")
    if len(images) != len(labels):
        got = f"{len(labels):,} labels for {len(images):,} images"
        raise unusable(f"as many labels as images in {stem}", got, _COPY)
    if stem.lower().startswith("emnist"):
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    pixels = torch.from_numpy(images[:, None])
    if names is None:
        return RawPart(pixels, labels.astype(np.int64))
    if strange := set(labels.tolist()) - set(names):
        got = f"{min(strange)} in {stem}"
        raise unusable(f"labels of the {len(names)} classes that are named", got, _COPY)
    order = {label: number for number, label in enumerate(names)}
    numbers = np.array([order[label] for label in labels.tolist()], dtype=np.int64)
    return RawPart(pixels, numbers, tuple(names.values()))


def _file(folder: Path, stem: str, kind: str) -> Path:
    """Return the file of the images or labels of a part; one that is not gzipped first."""
    plain = [f"{stem}-{kind}{dot}idx{AXES[kind]}-ubyte" for dot in "-."]
    for name in [*plain, *(f"{name}.gz" for name in plain)]:
        if (folder / name).is_file():
            return folder / name
    raise unusable(f"{plain[0]} in {folder}", "no such file", "put it beside the other files")


def read_array(path: Path, kind: str) -> np.ndarray:
    """Return the values of an IDX file, uint8 ``[N]`` or ``[N, H, W]``.

    Args:
        path: The file, gzipped if its name ends in ``.gz``.
        kind: ``"images"`` or ``"labels"``.

    Raises:
        DataError: The file is damaged, of another type, or describes more than its size allows.
    """
    axes = AXES[kind]
    head = 4 + 4 * axes
    size = path.stat().st_size
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            start = stream.read(head)
            if len(start) < head or start[:4] != bytes((0, 0, UBYTE, axes)):
                got = f"{path.name}, which begins with {start[:4].hex(' ') or 'nothing'}"
                raise unusable(f"an IDX file of {kind} as single bytes", got, _COPY)
            shape = struct.unpack(f">{axes}I", start[4:])
            described = math.prod(shape)
            if described > allowed_nbytes(size):
                got = f"{described:,} in {size:,} bytes"
                fix = "unpack it with gzip -d if that is meant"
                raise unusable(f"fewer values in {path.name}", got, fix)
            content = stream.read(described + 1)
    except (OSError, EOFError, zlib.error) as error:
        got = f"{path} ({error})"
        raise unusable("a whole IDX file", got, _COPY) from error
    if len(content) != described:
        more = "more" if len(content) > described else f"{len(content):,}"
        raise unusable(f"{described:,} values in {path.name}", more, _COPY)
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def _mapped_names(idx: IdxSet) -> dict[int, str] | None:
    """Return class names by label from EMNIST's mapping file, or None where there is none.

    A line is the label and the codes of its characters; the first character names the class.
    """
    path = idx.folder / f"{idx.train.removesuffix('-train')}-mapping.txt"
    if not path.is_file():
        return None
    names = {}
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.strip():
                label, code, *_ = map(int, line.split())
                names[label] = chr(code)
    except (ValueError, OverflowError) as error:
        raise unusable(f"a label and a character code per line of {path}", error, _COPY) from error
    return dict(sorted(names.items()))
