"""A folder of pictures: one folder per class, or such folders under ``train``, ``val`` and ``test``."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from kdistill.data import pixels, streamed
from kdistill.data.raw import Part, Raw, counted, unusable

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


def read_folder(root: Path, size: int | None, *, stream: bool = False) -> Raw:
    """Read ``root/<class>/**`` or ``root/{train,val,test}/<class>/**``; classes are sorted by name, as torchvision does.

    With ``stream`` pictures are decoded once now, and again whenever they are looked at.
    In a tree with ``train`` and ``val`` but no ``test``, ``val`` serves as the test part and the summary says so.

    Raises:
        DataError: No class folder, one without a picture, a picture that cannot be read, or different sizes without ``size``.
    """
    notes: list[str] = []
    found = {which: _find(root, names) for which, names in SPLITS.items()}
    if found["train"] is None or not _folders(found["train"]):
        return Raw(_part(root, size, "train", notes, stream), notes=notes)
    if found["test"] is None and found["validation"] is not None:
        notes.append(f"'{found['validation'].name}' serves as the test images")
        found["test"], found["validation"] = found["validation"], None
    parts = {which: None if folder is None else _part(folder, size, which, notes, stream) for which, folder in found.items()}
    return Raw(parts["train"], parts["test"], parts["validation"], notes=notes)


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder for folder in _folders(root) if folder.name.lower() in names), None)


def _folders(root: Path) -> list[Path]:
    """Return the folders in ``root``, sorted by name, without hidden ones and those that archives leave behind."""
    with os.scandir(root) as entries:
        return sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith((".", "__")))


def _pictures(folder: Path) -> tuple[list[Path], int]:
    """Return the pictures under ``folder``, sorted, and the number of other visible files."""
    files = [Path(top, name) for top, _, names in os.walk(folder, followlinks=True) for name in names if not name.startswith(".")]
    pictures = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    return pictures, len(files) - len(pictures)


def _part(root: Path, size: int | None, where: str, notes: list[str], stream: bool) -> Part:
    folders = _folders(root)
    if not folders:
        raise unusable(f"one folder per class in {root}", "none", f"sort the pictures into {root}/<class>/")
    paths: list[Path] = []
    labels: list[int] = []
    ignored = 0
    for label, folder in enumerate(folders):
        pictures, others = _pictures(folder)
        if not pictures:
            raise unusable(
                f"pictures ({' '.join(SUFFIXES)}) of class '{folder.name}'",
                f"none in {folder}",
                "add some or remove the folder",
            )
        paths += pictures
        labels += [label] * len(pictures)
        ignored += others
    if ignored:
        notes.append(f"{counted(ignored, 'other file')} in {where} ignored")

    def images() -> Iterator[Tensor]:
        return (pixels.decode(path, str(path), notes) for path in paths)

    def name(row: int) -> str:
        return str(paths[row])

    if stream:
        found = streamed.of_items(lambda row: pixels.decode(paths[row], name(row), []), images(), size, name)
    else:
        found = pixels.collect(images(), size, name)
    names = tuple(folder.name for folder in folders)
    return Part(found, np.array(labels, dtype=np.int64), names, paths=tuple(map(str, paths)))
