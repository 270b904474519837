"""From whatever ``load_data`` is given to the reader that understands it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdistill.data import image_tensors, picture_table
from kdistill.data.array_files import READERS, is_artefact, read_artefact, read_distilled, read_file
from kdistill.data.builtin import BUILTIN, read_builtin
from kdistill.data.image_folder import read_folder
from kdistill.data.in_memory import (
    is_hugging_face,
    read_dataset,
    read_hugging_face,
    read_mapping,
    read_pair,
)
from kdistill.data.raw_data import RawData, RawPart, ReadOptions, unusable
from kdistill.errors import ConfigError

TABLES = (".csv", ".tsv")


def read_source(spec: Any, options: ReadOptions) -> RawData:
    """Return images, labels and names as the source has them.

    Raises:
        ConfigError: Unknown name, or columns of a source that has none.
        DataError: Images or labels that cannot be used.
    """
    is_text = isinstance(spec, str | os.PathLike)
    has_columns = (
        is_hugging_face(spec)
        or picture_table.is_frame(spec)
        or (is_text and Path(spec).suffix.lower() in TABLES)
    )
    for option in ("image_column", "label_column"):
        if getattr(options, option) is not None and not has_columns:
            raise ConfigError(
                f"{option}: expected a Hugging Face data set, a data frame or a CSV file, got "
                f"{_kind(spec)}; leave {option} out"
            )
    return _read_path(spec, options) if is_text else _read_object(spec, options)


def read_streamed(spec: Any, options: ReadOptions) -> RawData:
    """Do as ``read_source`` without holding the images: a folder, arrays or a torch ``Dataset``.

    Raises:
        ConfigError: Another kind of source.
    """
    notes = ["read from the source whenever they are looked at"]
    if isinstance(spec, str | Path) and spec not in BUILTIN and Path(spec).expanduser().is_dir():
        path = Path(spec).expanduser()
        raw = replace(
            read_folder(path, options, stream=True), name=path.resolve().name, source=str(spec)
        )
        return replace(raw, notes=[*raw.notes, *notes])
    if not isinstance(spec, str | Path | Mapping) and not is_hugging_face(spec):
        if _is_pair(spec):
            part = read_pair(spec[0], spec[1], options.size, notes=notes, stream=True)
            return RawData(part, name="arrays", source="arrays", notes=notes)
        if hasattr(spec, "__len__") and hasattr(spec, "__getitem__"):
            kind = type(spec).__name__
            part = read_dataset(spec, options.size, notes=notes, stream=True)
            return RawData(part, name=kind.lower(), source=f"torch data set {kind}", notes=notes)
    got = repr(spec) if isinstance(spec, str | Path) else type(spec).__name__
    raise ConfigError(
        f"stream: expected a folder of pictures, (X, y) arrays or a torch Dataset, got {got}; "
        "leave stream out"
    )


def _read_object(spec: Any, options: ReadOptions) -> RawData:
    size, notes = options.size, list[str]()
    if is_hugging_face(spec):
        raw = read_hugging_face(
            spec, size, image_column=options.image_column, label_column=options.label_column
        )
        return replace(raw, source="Hugging Face data set")
    if hasattr(spec, "label_logits") and hasattr(spec, "to_npz"):  # a DistilledDataset
        arrays = {
            "x_train": spec.images.numpy(),
            "y_train": spec.labels.numpy(),
            "classes": spec.classes,
        }
        logits = {} if spec.label_logits is None else {"label_logits": spec.label_logits}
        return replace(
            read_distilled({**arrays, **logits}, size, where="the set"),
            name="distilled",
            source="a distilled set",
        )
    if picture_table.is_frame(spec):
        return replace(picture_table.read_frame(spec, options), name="frame", source="data frame")
    if isinstance(spec, Mapping):
        return replace(read_mapping(spec, size, where="the dict"), name="arrays", source="arrays")
    if isinstance(spec, tuple | list) and (files := _files(spec)) is not None:
        return replace(
            picture_table.read_paths(*files, options), name="files", source="list of files"
        )
    if _is_pair(spec):
        return RawData(
            read_pair(spec[0], spec[1], size, notes=notes),
            name="arrays",
            source="arrays",
            notes=notes,
        )
    if hasattr(spec, "__len__") and hasattr(spec, "__getitem__"):
        kind = type(spec).__name__
        return RawData(
            read_dataset(spec, size, notes=notes),
            name=kind.lower(),
            source=f"torch data set {kind}",
            notes=notes,
        )
    expected = "a name, a path, (X, y) arrays or a data set with a length"
    raise unusable(expected, type(spec).__name__, "see the documentation of load_data")


def _read_path(spec: str | os.PathLike[str], options: ReadOptions) -> RawData:
    if not str(spec).strip():
        raise unusable("a name or a path", repr(str(spec)), "'.' is the current folder")
    if spec in BUILTIN:
        return _resized(read_builtin(str(spec)), options.size)
    path = Path(spec).expanduser()
    if not path.exists():
        is_pathlike = (
            not isinstance(spec, str)
            or path.suffix.lower() in (*READERS, *TABLES)
            or any(c in spec for c in "/\\~.")
        )
        if is_pathlike:
            raise unusable("an existing file or folder", spec, "check the path")
        return read_builtin(str(spec))  # unknown: says so and suggests the nearest
    if not path.is_dir() and not path.is_file():  # a named pipe would wait for ever
        raise unusable("a regular file or a folder", spec, "check the path")
    if is_artefact(path):
        raw = read_artefact(path, options.size)
    elif path.is_dir():
        raw = read_folder(path, options)
    elif path.suffix.lower() in TABLES:
        raw = picture_table.read_csv(path, options)
    else:
        raw = read_file(path, options.size)
    return replace(raw, name=path.resolve().name if path.is_dir() else path.stem, source=str(spec))


def _is_pair(spec: Any) -> bool:
    """Return whether ``spec`` is ``(X, y)``; a list of two could also be a data set of two items."""
    if not isinstance(spec, tuple | list) or len(spec) != 2:
        return False
    images, labels = spec
    return isinstance(spec, tuple) or (
        getattr(images, "ndim", 0) >= 3 and 1 <= getattr(labels, "ndim", 0) <= 2
    )


def _files(spec: tuple[Any, ...] | list[Any]) -> tuple[list[Any], Any] | None:
    """Return paths and labels of ``[path, ...]``, ``[(path, label), ...]`` or ``([path, ...], labels)``, else None."""
    if spec and all(map(picture_table.is_path, spec)):
        return list(spec), None
    is_rows = all(
        isinstance(item, tuple | list) and len(item) == 2 and picture_table.is_path(item[0])
        for item in spec
    )
    if spec and is_rows and not (len(spec) == 2 and all(map(picture_table.is_path, spec[0]))):
        return [item[0] for item in spec], [item[1] for item in spec]
    if len(spec) == 2 and hasattr(spec[0], "__iter__") and not hasattr(spec[0], "ndim"):
        paths = list(spec[0])
        return (paths, list(spec[1])) if paths and all(map(picture_table.is_path, paths)) else None
    if (
        len(spec) == 2
        and getattr(spec[0], "ndim", 0) == 1
        and len(spec[0])
        and all(map(picture_table.is_path, spec[0]))
    ):
        return list(spec[0]), list(spec[1])  # columns of a frame, arrays of text
    return None


def _resized(raw: RawData, size: int | None) -> RawData:
    if size is None:
        return raw

    def fitted(part: RawPart | None) -> RawPart | None:
        return (
            None if part is None else replace(part, images=image_tensors.square(part.images, size))
        )

    return replace(raw, train=fitted(raw.train), test=fitted(raw.test))


def _kind(spec: Any) -> str:
    if isinstance(spec, str | os.PathLike):
        return os.fspath(spec)
    return "arrays" if isinstance(spec, Mapping) or _is_pair(spec) else type(spec).__name__
