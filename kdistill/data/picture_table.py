"""Lists of picture files with their labels: a pandas frame, a CSV file, a list of paths."""

import csv
import io
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdistill.data.folder_listing import SPLITS, Picture, picture_at
from kdistill.data.picture_files import is_picture
from kdistill.data.picture_reader import PictureReader
from kdistill.data.raw_data import RawData, RawPart, ReadOptions, label_values, unusable
from kdistill.errors import ConfigError, did_you_mean

PATH_COLUMNS = (
    "path",
    "image_path",
    "filepath",
    "file_path",
    "filename",
    "file_name",
    "file",
    "image",
    "img",
    "picture",
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category", "y")
SPLIT_COLUMNS = ("split", "set", "subset", "fold")


def is_frame(spec: object) -> bool:
    """Return whether ``spec`` looks like a pandas or Polars ``DataFrame``."""
    return hasattr(spec, "columns") and (hasattr(spec, "iloc") or hasattr(spec, "to_dicts"))


def is_path(value: object) -> bool:
    """Return whether ``value`` names a picture file."""
    return isinstance(value, str | os.PathLike) and is_picture(os.fspath(value))


def read_frame(frame: Any, options: ReadOptions) -> RawData:
    """Read a data frame with a column of paths, one of labels and perhaps one of splits (train, test, val)."""
    names = [str(name) for name in frame.columns]
    columns = {name: list(frame[own]) for name, own in zip(names, frame.columns, strict=True)}
    return _read_columns(columns, options, Path(), where="the data frame")


def read_csv(path: Path, options: ReadOptions) -> RawData:
    """Read a ``.csv`` or ``.tsv`` file of paths, relative to its folder, and labels; with a header or two columns.

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
        raise unusable(
            f"a line for every picture in {path}", "an empty file", "write path,label on each"
        )
    if odd := [line for row, line in zip(rows, lines, strict=True) if len(row) != len(rows[0])]:
        raise unusable(
            f"lines with as many values as the first in {path}",
            f"another number in line {odd[0]}",
            "correct it",
        )
    has_header = not any(map(is_path, rows[0]))
    names = (
        rows[0]
        if has_header
        else (["path", "label"] if len(rows[0]) == 2 else [str(k) for k in range(len(rows[0]))])
    )
    body = rows[1:] if has_header else rows
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise unusable(
            f"columns of different names in {path}",
            f"'{twice[0]}' more than once",
            "rename one of them",
        )
    columns = {name: [row[k] for row in body] for k, name in enumerate(names)}
    return _read_columns(columns, options, path.parent, where=path.name)


def _lines(text: str, suffix: str) -> tuple[list[list[str]], list[int]]:
    """Return the values of every line that has some, and its number; spreadsheets write semicolons in half of the world."""
    first = text.split("\n", 1)[0]
    delimiter = "\t" if suffix == ".tsv" else ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    numbered = [(row, reader.line_num) for row in reader if row]
    return [row for row, _ in numbered], [line for _, line in numbered]


def read_paths(paths: Sequence[Any], labels: Any, options: ReadOptions) -> RawData:
    """Read picture files; without ``labels`` the folder that a file lies in is its class."""
    if labels is None:
        labels = [Path(path).absolute().parent.name for path in paths]
    notes: list[str] = []
    return RawData(_part(list(paths), labels, options, Path(), "train", notes), notes=notes)


def _read_columns(
    columns: dict[str, list[Any]], options: ReadOptions, base: Path, where: str
) -> RawData:
    path_column = _column(columns, "image", options.image_column, PATH_COLUMNS, where)
    label_column = _column(
        columns, "label", options.label_column, LABEL_COLUMNS, where, besides=path_column
    )
    split_column = next(
        (name for name in columns if name.lower() in SPLIT_COLUMNS and _splits_of(columns[name])),
        None,
    )
    paths, labels = columns[path_column], np.asarray(columns[label_column], dtype=object)
    notes = [f"paths from column '{path_column}', labels from '{label_column}'"]
    splits = (
        ["train"] * len(paths) if split_column is None else _splits_of(columns[split_column]) or []
    )
    parts = {}
    for which in SPLITS:
        rows = [row for row, split in enumerate(splits) if split == which]
        if rows:
            own = labels[rows].tolist()
            parts[which] = _part([paths[row] for row in rows], own, options, base, which, notes)
    if "train" not in parts:
        raise unusable(
            f"rows of the split 'train' in {where}", "none", f"correct the column '{split_column}'"
        )
    return RawData(parts["train"], parts.get("test"), parts.get("validation"), notes=notes)


def _column(
    columns: dict[str, list[Any]],
    what: str,
    asked: str | None,
    usual: tuple[str, ...],
    where: str,
    besides: str = "",
) -> str:
    if asked is not None:
        if asked not in columns:
            known = did_you_mean(asked, list(columns))
            raise ConfigError(
                f"{what}_column: expected a column of {where}, got '{asked}'; {known}"
            )
        return asked
    others = [name for name in columns if name != besides]
    found = [name for name in usual for own in others if own.lower() == name]
    if found:
        return next(own for own in others if own.lower() == found[0])
    if what == "image":
        found = [name for name in others if columns[name] and all(map(is_path, columns[name]))]
    elif len(others) == 1:
        found = others
    if len(found) != 1:
        kind = "a column of picture paths" if what == "image" else "a column of labels"
        raise unusable(
            f"{kind} in {where}", f"the columns {list(columns)}", f"name it with {what}_column="
        )
    return found[0]


def _splits_of(values: list[Any]) -> list[str] | None:
    """Return ``"train"``, ``"validation"`` or ``"test"`` for every value, or None if one means none of them."""
    meaning = {alias: which for which, aliases in SPLITS.items() for alias in aliases}
    found = [meaning.get(str(value).strip().lower()) for value in values]
    return [split for split in found if split is not None] if all(found) else None


def _part(
    paths: list[Any], labels: Any, options: ReadOptions, base: Path, where: str, notes: list[str]
) -> RawPart:
    if len(labels) != len(paths):
        counts = f"{len(labels):,} labels for {len(paths):,} images"
        raise unusable(f"as many labels as images in {where}", counts, "match them")
    files = [_file(value, base, where, row) for row, value in enumerate(paths)]
    if not files:
        raise unusable(f"images in {where}", "none", "add images")
    place = Path(os.path.commonpath([file.path.parent for file in files]))
    rows, images = PictureReader(options, notes, place).read(files)
    values = label_values(_numbers([labels[row] for row in rows]), len(rows), where)
    return RawPart(images, values, paths=tuple(str(files[row].path) for row in rows))


def _file(value: Any, base: Path, where: str, row: int) -> Picture:
    if not isinstance(value, str | os.PathLike):
        raise unusable(
            f"paths of picture files in {where}",
            f"{value!r:.60} at row {row}",
            "give one path per row",
        )
    path = (base / Path(value).expanduser()).absolute()
    try:
        status = path.stat()
    except OSError as error:
        raise unusable(
            f"picture files in {where}",
            f"{path} at row {row} ({error.strerror})",
            "correct the path",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise unusable(
            f"picture files in {where}",
            f"{path} at row {row} (not a regular file)",
            "correct the path",
        )
    return picture_at(path, 0, status)


def _numbers(labels: list[Any]) -> list[Any]:
    """Return labels as whole numbers if all of them are written as such: a CSV file has only text."""
    texts = [label.strip() if isinstance(label, str) else label for label in labels]
    is_number = all(
        isinstance(text, str) and text.isascii() and text.isdigit() and str(int(text)) == text
        for text in texts
    )
    return [int(text) for text in texts] if is_number else texts
