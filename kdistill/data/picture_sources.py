"""Picture files with labels: folders of classes, a data frame, a CSV file, a list of paths."""

import csv
import io
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdistill.data.picture_files import HEIF_SUFFIXES, SUFFIXES, Picture, is_picture, picture_at
from kdistill.data.picture_reader import read_pictures
from kdistill.data.raw_data import (
    RawData,
    RawPart,
    Reading,
    choose_column,
    counted,
    label_values,
    unusable,
)

MARKER = ".kdistill.json"  # in a folder that ``DistilledDataset.to_imagefolder`` wrote
# fmt: off
PATH_COLUMNS = (
    "path", "image_path", "filepath", "file_path", "filename", "file_name", "file", "image", "img",
    "picture",
)
# fmt: on
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category", "y")
SPLIT_COLUMNS = ("split", "set", "subset", "fold")

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
NAMED = 5  # files that a note names
Visited = set[tuple[int, int]]  # device and inode of every folder that is entered


def is_frame(spec: object) -> bool:
    """Return whether ``spec`` looks like a pandas or Polars ``DataFrame``."""
    return hasattr(spec, "columns") and (hasattr(spec, "iloc") or hasattr(spec, "to_dicts"))


def is_path(value: object) -> bool:
    """Return whether ``value`` names a picture file."""
    return isinstance(value, str | os.PathLike) and is_picture(os.fspath(value))


def read_folder(root: Path, reading: Reading) -> RawData:
    """Read ``root/<class>/**`` or ``root/{train,val,test}/<class>/**``.

    Classes are sorted by name, as torchvision does.  Streamed pictures are decoded once now, and
    again whenever they are used.

    Raises:
        DataError: No class folder, no picture, pictures that cannot be read (all are named), or
            different sizes without a size.
    """
    parts = {}
    for which, listing in list_parts(root).items():
        reading.notes.extend(listing.notes(which))
        files, images = read_pictures(listing.pictures, listing.root, reading)
        parts[which] = RawPart(
            images,
            np.array([file.label for file in files], dtype=np.int64),
            tuple(listing.classes),
            # a class whose pictures are all unreadable is dropped, as one without pictures is
            present_only=len(files) < len(listing.pictures),
            paths=tuple(str(file.path) for file in files),
        )
    return RawData(**parts, is_distilled=(root / MARKER).is_file())


def read_frame(frame: Any, reading: Reading) -> RawData:
    """Read a data frame: a column of paths, one of labels, perhaps one of splits."""
    columns = {str(name): list(frame[name]) for name in frame.columns}
    return _read_columns(columns, reading, Path(), where="the data frame")


def read_csv(path: Path, reading: Reading) -> RawData:
    """Read a ``.csv`` or ``.tsv`` file with a header, or with a column of paths and one of labels.

    Paths are relative to the folder of the file.

    Raises:
        DataError: The file is no text, its lines differ in length, or no column holds paths or
            labels.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows, lines = _lines(stream.read(), path.suffix.lower())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unusable("a table in UTF-8", f"{path} ({error})", "save it as CSV again") from error
    if not rows:
        expected = f"a line for every picture in {path}"
        raise unusable(expected, "an empty file", "write path,label on each")
    names, body = rows[0], rows[1:]
    if odd := [line for row, line in zip(rows, lines, strict=True) if len(row) != len(names)]:
        expected = f"lines with as many values as the first in {path}"
        raise unusable(expected, f"another number in line {odd[0]}", "correct it")
    if any(map(is_path, names)):  # no header
        body = rows
        names = ["path", "label"] if len(names) == 2 else [str(k) for k in range(len(names))]
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        expected = f"columns of different names in {path}"
        raise unusable(expected, f"'{twice[0]}' more than once", "rename one of them")
    columns = {name: [row[k] for row in body] for k, name in enumerate(names)}
    return _read_columns(columns, reading, path.parent, where=path.name)


def read_paths(paths: Sequence[Any], labels: Any, reading: Reading) -> RawData:
    """Read picture files; without ``labels`` the folder that a file lies in is its class."""
    if labels is None:
        labels = [Path(path).absolute().parent.name for path in paths]
    return RawData(_read_list(paths, labels, reading, Path(), "train"))


def _lines(text: str, suffix: str) -> tuple[list[list[str]], list[int]]:
    """Return the values of every line that has some, and its number."""
    first = text.split("\n", 1)[0]  # spreadsheets write semicolons in half of the world
    delimiter = "\t" if suffix == ".tsv" else ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    numbered = [(row, reader.line_num) for row in reader if row]
    return [row for row, _ in numbered], [line for _, line in numbered]


def _read_columns(
    columns: dict[str, list[Any]], reading: Reading, base: Path, where: str
) -> RawData:
    names = list(columns)
    paths = _usual(names, PATH_COLUMNS) or [
        name for name, values in columns.items() if values and all(map(is_path, values))
    ]
    path_column = choose_column("image_column", reading.image_column, paths, names, where)
    others = [name for name in names if name != path_column]
    labels = _usual(others, LABEL_COLUMNS) or (others if len(others) == 1 else [])
    label_column = choose_column("label_column", reading.label_column, labels, names, where)
    reading.notes.append(f"paths from column '{path_column}', labels from '{label_column}'")
    rows = list(zip(columns[path_column], columns[label_column], strict=True))
    splits = _splits(columns, len(rows))
    parts = {}
    for which in SPLITS:
        own = [row for row, split in zip(rows, splits, strict=True) if split == which]
        if own:
            parts[which] = _read_list(*zip(*own, strict=True), reading, base, which)
    if "train" not in parts:
        raise unusable(f"rows of the split 'train' in {where}", "none", "add or rename some")
    return RawData(**parts)


def _usual(columns: list[str], usual: tuple[str, ...]) -> list[str]:
    """Return the column with the most usual name, or none."""
    return [own for name in usual for own in columns if own.lower() == name][:1]


def _splits(columns: dict[str, list[Any]], count: int) -> list[str]:
    """Return the split of every row: all are for training where no column says so."""
    meaning = {alias: which for which, aliases in SPLITS.items() for alias in aliases}
    for name, values in columns.items():
        splits = [meaning.get(str(value).strip().lower(), "") for value in values]
        if name.lower() in SPLIT_COLUMNS and all(splits):
            return splits
    return ["train"] * count


def _read_list(
    paths: Sequence[Any], labels: Sequence[Any], reading: Reading, base: Path, where: str
) -> RawPart:
    if len(labels) != len(paths):
        got = f"{len(labels):,} labels for {len(paths):,} images"
        raise unusable(f"as many labels as images in {where}", got, "match them")
    files = [
        _picture(path, label, base, where, row)
        for row, (path, label) in enumerate(zip(paths, labels, strict=True))
    ]
    place = Path(os.path.commonpath([file.path.parent for file in files]))
    readable, images = read_pictures(files, place, reading)
    values = label_values(_numbers([file.label for file in readable]), len(readable), where)
    return RawPart(images, values, paths=tuple(str(file.path) for file in readable))


def _picture(value: Any, label: Any, base: Path, where: str, row: int) -> Picture:
    if not isinstance(value, str | os.PathLike):
        expected, got = f"paths of picture files in {where}", f"{value!r:.60} at row {row}"
        raise unusable(expected, got, "give one path per row")
    path = (base / Path(value).expanduser()).absolute()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file")
    except OSError as error:
        got = f"{path} at row {row} ({error.strerror})"
        raise unusable(f"picture files in {where}", got, "correct the path") from error
    return picture_at(path, label, status)


def _numbers(labels: list[Any]) -> list[Any]:
    """Return labels as whole numbers if all are written as such: a CSV file has only text."""
    texts = [label.strip() if isinstance(label, str) else label for label in labels]
    is_number = all(
        isinstance(text, str) and text.isascii() and text.isdigit() and str(int(text)) == text
        for text in texts
    )
    return [int(text) for text in texts] if is_number else texts


@dataclass
class Listing:
    """The pictures of one part, and what is not read.

    Attributes:
        root: Folder of the part.
        classes: Names of the class folders that hold a picture, sorted.
        pictures: Class by class, each sorted by path.
        ignored: Endings of files that are no pictures, counted.
        outside: Files that lie beside the class folders and belong to no class.
        empty: Class folders without a picture.
        strange: What is neither a file nor a folder, and folders that were entered already, each
            with the reason in brackets.
    """

    root: Path
    classes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    outside: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    def notes(self, where: str) -> list[str]:
        """Return what is not read, one phrase each."""
        notes = []
        if self.ignored:
            count = counted(sum(self.ignored.values()), "other file")
            endings = ", ".join(f"{n} {ending}" for ending, n in self.ignored.most_common())
            notes.append(f"{count} in {where} ignored ({endings})")
        if missing := [ending for ending in self.ignored if ending in HEIF_SUFFIXES]:
            notes.append(f'{" ".join(missing)} needs pip install "kdistill[heif]"')
        if self.outside:
            verbs = ("belongs", "is") if len(self.outside) == 1 else ("belong", "are")
            notes.append(
                f"{counted(len(self.outside), 'file')} directly in {self.root} {verbs[0]} to no "
                f"class and {verbs[1]} ignored ({_some(self.outside)})"
            )
        if self.empty:
            noun = "class folder" if len(self.empty) == 1 else "class folders"
            notes.append(f"{noun} without a picture left out ({_some(self.empty)})")
        if self.strange:
            notes.append(f"not read: {_some(self.strange)}")
        return notes

    def add_outside(self, beside: list[Path]) -> None:
        """Enter what lies beside the class folders."""
        for path in beside:
            if _status(path) is None:
                self.strange.append(f"{path} (a link that leads nowhere)")
            else:
                self.outside.append(path.name)


def list_parts(root: Path) -> dict[str, Listing]:
    """Return the parts of a folder of pictures.

    They are those of ``root/{train,val,test}/<class>/**``, or ``"train"`` alone of
    ``root/<class>/**``.

    Raises:
        DataError: No class folder, or no picture in any of them.
    """
    folders, beside = _entries(root)
    roots = {
        which: folder
        for which, names in SPLITS.items()
        if (folder := next((f for f in folders if f.name.lower() in names), None)) is not None
    }
    if "train" not in roots or not _entries(roots["train"])[0]:
        roots = {"train": root}
    # a link that leads to one of these from elsewhere would give a class the pictures of another
    classes = [folder for part in roots.values() for folder in _entries(part)[0]]
    visited = {_identity(folder.stat()) for folder in (root, *roots.values(), *classes)}
    parts = {which: _list(folder, visited) for which, folder in roots.items()}
    if roots["train"] != root:
        parts["train"].add_outside(beside)
    return parts


def _list(root: Path, visited: Visited) -> Listing:
    listing = Listing(root)
    folders, beside = _entries(root)
    listing.add_outside(beside)
    if not folders:
        fix = f"sort the pictures into {root}/<class>/"
        raise unusable(f"one folder per class in {root}", "none", fix)
    for folder in folders:
        pictures = list(_walk(folder, len(listing.classes), listing, visited))
        listing.pictures += sorted(pictures, key=lambda picture: picture.path)
        (listing.classes if pictures else listing.empty).append(folder.name)
    if not listing.classes:
        raise unusable(f"pictures ({' '.join(SUFFIXES)}) in {root}", "none", "add some")
    return listing


def _walk(folder: Path, label: int, listing: Listing, visited: Visited) -> Iterator[Picture]:
    visible = (entry for entry in _scanned(folder) if not entry.name.startswith("."))
    for entry in sorted(visible, key=lambda entry: entry.name):
        path = Path(entry.path)
        status = _status(path)
        if status is None:
            listing.strange.append(f"{path} (a link that leads nowhere)")
        elif stat.S_ISDIR(status.st_mode):
            if _identity(status) in visited:
                listing.strange.append(f"{path} (a link to a folder that is read already)")
                continue
            visited.add(_identity(status))
            yield from _walk(path, label, listing, visited)
        elif not stat.S_ISREG(status.st_mode):
            listing.strange.append(f"{path} (not a regular file)")
        elif is_picture(entry.name):
            yield picture_at(path, label, status)
        else:
            listing.ignored[path.suffix.lower() or "without ending"] += 1


def _entries(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders in ``root`` and everything else, each sorted.

    Hidden entries and those that archives leave behind are left out.
    """
    visible = [entry for entry in _scanned(root) if not entry.name.startswith((".", "__"))]
    # not entry.is_dir(), which raises for a link to itself
    folders = {entry.path for entry in visible if os.path.isdir(entry.path)}
    beside = (Path(entry.path) for entry in visible if entry.path not in folders)
    return sorted(map(Path, folders)), sorted(beside)


def _scanned(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        got, fix = f"{folder} ({error.strerror})", "change its permissions, or move it elsewhere"
        raise unusable("folders that can be listed", got, fix) from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _status(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
