"""From whatever ``load_data`` is given to the reader that understands it; and files of arrays.

Those are ``.npz``, ``.safetensors`` and ``.pt``; nothing in them is ever executed.
"""

import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from kdistill.data import image_tensors, picture_sources
from kdistill.data.builtin import BUILTIN, read_builtin
from kdistill.data.cifar_files import form_of, read_cifar, refuse_pickled
from kdistill.data.idx_files import is_idx, read_idx
from kdistill.data.in_memory import (
    PAIRS,
    is_hugging_face,
    read_dataset,
    read_hugging_face,
    read_mapping,
    read_pair,
)
from kdistill.data.picture_sources import is_frame, is_path
from kdistill.data.raw_data import RawData, Reading, unusable
from kdistill.errors import ConfigError, did_you_mean
from kdistill.files.bounded_read import TooLarge, load_tensors, read_npz

TABLES = (".csv", ".tsv")

# beside images and labels, in a set that kdistill exported
_OURS = ("kdistill", "label_logits", "classes")
_WANTED = frozenset({name for pairs in PAIRS.values() for pair in pairs for name in pair}).union(
    _OURS
)
# arrays with other names are not decoded
READERS: dict[str, Callable[[Path], Any]] = {
    ".npz": lambda path: read_npz(path, _WANTED),
    ".safetensors": load_file,
    ".pt": load_tensors,
    ".pth": load_tensors,
}


def read_source(spec: Any, reading: Reading) -> RawData:
    """Return images, labels and names as the source has them.

    Raises:
        ConfigError: Unknown name, columns of a source that has none, or ``stream`` for a source
            that is read as a whole.
        DataError: Images or labels that cannot be used.
    """
    is_text = isinstance(spec, str | os.PathLike)
    is_table = is_text and Path(spec).suffix.lower() in TABLES
    is_cifar = is_text and form_of(Path(spec).expanduser()) is not None
    has_columns = is_hugging_face(spec) or is_frame(spec) or is_table or is_cifar
    for option in ("image_column", "label_column"):
        if getattr(reading, option) is not None and not has_columns:
            raise ConfigError(
                f"{option}: expected a Hugging Face data set, a data frame or a CSV file, got "
                f"{_shown(spec)}; leave {option} out"
            )
    if reading.stream and not _can_stream(spec):
        got = repr(spec) if is_text else type(spec).__name__
        raise ConfigError(
            f"stream: expected pictures in files, (X, y) arrays or a torch Dataset, got {got}; "
            "leave stream out"
        )
    raw = _read_path(spec, reading) if is_text else _read_object(spec, reading)
    if reading.stream:
        image_tensors.note(reading.notes, "read from the source whenever they are used")
    return raw


def _can_stream(spec: Any) -> bool:
    if isinstance(spec, str | os.PathLike):
        path = Path(spec).expanduser()
        is_list = path.suffix.lower() in TABLES
        is_whole = spec in BUILTIN or is_artefact(path) or is_binary(path)
        return not is_whole and (path.is_dir() or is_list)
    is_whole = is_hugging_face(spec) or isinstance(spec, Mapping) or _is_distilled(spec)
    return not is_whole and (_is_pair(spec) or _is_sequence(spec))


def _read_object(spec: Any, reading: Reading) -> RawData:
    if is_hugging_face(spec):
        raw, name, source = read_hugging_face(spec, reading), "data", "Hugging Face data set"
    elif _is_distilled(spec):
        arrays = {
            "x_train": spec.images.numpy(),
            "y_train": spec.labels.numpy(),
            "classes": spec.classes,
        }
        if spec.label_logits is not None:
            arrays["label_logits"] = spec.label_logits
        raw = read_distilled(arrays, reading, where="the set")
        name, source = "distilled", "a distilled set"
    elif is_frame(spec):
        raw, name, source = picture_sources.read_frame(spec, reading), "frame", "data frame"
    elif isinstance(spec, Mapping):
        raw, name, source = read_mapping(spec, reading, where="the dict"), "arrays", "arrays"
    elif isinstance(spec, tuple | list) and (files := _files(spec)) is not None:
        raw, name, source = picture_sources.read_paths(*files, reading), "files", "list of files"
    elif _is_pair(spec):
        raw, name, source = RawData(read_pair(spec[0], spec[1], reading)), "arrays", "arrays"
    elif _is_sequence(spec):
        kind = type(spec).__name__
        raw = RawData(read_dataset(spec, reading))
        name, source = kind.lower(), f"torch data set {kind}"
    else:
        expected = "a name, a path, (X, y) arrays or a data set with a length"
        raise unusable(expected, type(spec).__name__, "see the documentation of load_data")
    return replace(raw, name=name, source=source)


def _read_path(spec: str | os.PathLike[str], reading: Reading) -> RawData:
    text = os.fspath(spec)
    if not text.strip():
        raise unusable("a name or a path", repr(text), "'.' is the current folder")
    path = Path(spec).expanduser()
    suffix = path.suffix.lower()
    is_name = isinstance(spec, str) and not any(c in spec for c in "/\\~.")
    if spec in BUILTIN or (is_name and suffix not in READERS and not path.exists()):
        return _resized(read_builtin(text), reading.size)  # of unknown ones it suggests the nearest
    if not path.exists():
        raise unusable("an existing file or folder", spec, "check the path")
    if not path.is_dir() and not path.is_file():  # a named pipe would wait for ever
        raise unusable("a regular file or a folder", spec, "check the path")
    if is_artefact(path):
        raw = read_artefact(path, reading)
    elif is_binary(path):
        form = form_of(path)
        raw = read_cifar(path, form, reading) if form else read_idx(path, reading)
        raw = _resized(raw, reading.size)
    elif path.is_dir():
        refuse_pickled(path)
        raw = picture_sources.read_folder(path, reading)
    elif suffix in TABLES:
        raw = picture_sources.read_csv(path, reading)
    else:
        raw = read_file(path, reading)
    return replace(raw, name=path.resolve().name if path.is_dir() else path.stem, source=str(spec))


def _is_distilled(spec: Any) -> bool:
    return hasattr(spec, "label_logits") and hasattr(spec, "to_npz")


def _is_sequence(spec: Any) -> bool:
    return hasattr(spec, "__len__") and hasattr(spec, "__getitem__")


def _is_pair(spec: Any) -> bool:
    """Return whether ``spec`` is ``(X, y)``; a list of two could also be a data set of items."""
    if not isinstance(spec, tuple | list) or len(spec) != 2:
        return False
    images, labels = spec
    return isinstance(spec, tuple) or (
        getattr(images, "ndim", 0) >= 3 and 1 <= getattr(labels, "ndim", 0) <= 2
    )


def _files(spec: tuple[Any, ...] | list[Any]) -> tuple[list[Any], Any] | None:
    """Return paths and labels of a list of files, None of anything else.

    It is ``[path, ...]``, ``[(path, label), ...]`` or ``([path, ...], labels)``, whose two parts
    may be columns of a frame or arrays of text.
    """
    if spec and all(map(is_path, spec)):
        return list(spec), None
    is_couple = len(spec) == 2 and hasattr(spec[0], "__iter__")
    if is_couple and getattr(spec[0], "ndim", 1) == 1 and not isinstance(spec[0], str):
        paths = list(spec[0])
        if paths and all(map(is_path, paths)):
            return paths, list(spec[1])
    is_rows = all(
        isinstance(item, tuple | list) and len(item) == 2 and is_path(item[0]) for item in spec
    )
    if spec and is_rows:
        return [item[0] for item in spec], [item[1] for item in spec]
    return None


def _resized(raw: RawData, size: int | None) -> RawData:
    parts = {"train": raw.train, "test": raw.test}
    resized = {
        which: replace(part, images=image_tensors.resize_square(part.images, size))
        for which, part in parts.items()
        if size is not None and part is not None
    }
    return replace(raw, **resized)


def _shown(spec: Any) -> str:
    if isinstance(spec, str | os.PathLike):
        return os.fspath(spec)
    return "arrays" if isinstance(spec, Mapping) or _is_pair(spec) else type(spec).__name__


def read_file(path: Path, reading: Reading) -> RawData:
    """Read a file of named arrays, or a ``.pt`` file with a pair (images, labels).

    Raises:
        DataError: Unknown kind of file, a damaged one, one that holds pickled objects, or one
            without images and labels.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        fix = did_you_mean(suffix, list(READERS))
        raise unusable("a folder or a file of a known kind", path.name, fix)
    try:
        arrays = READERS[suffix](path)
    except Exception as error:  # of any kind: a damaged pickle raises IndexError, struct.error, ...
        got = f"{path} ({_first_line(error)})"
        raise unusable(f"a whole {suffix} file of arrays", got, _fix(error)) from error
    is_ours = suffix == ".npz" and {"kdistill", "x_train", "y_train"} <= set(arrays)
    if is_ours and arrays["x_train"].dtype.kind == "f":
        return read_distilled(arrays, reading, where=path.name)
    if isinstance(arrays, Mapping):
        return read_mapping(arrays, reading, where=path.name)
    if isinstance(arrays, tuple | list) and len(arrays) == 2:
        return RawData(read_pair(arrays[0], arrays[1], reading))
    expected = f"a dict or a pair (images, labels) in {path.name}"
    raise unusable(expected, type(arrays).__name__, "save one")


def is_binary(path: Path) -> bool:
    """Return whether ``path`` is a data set in the format of MNIST or of CIFAR."""
    return form_of(path) is not None or (path.exists() and is_idx(path))


def is_artefact(path: Path) -> bool:
    """Return whether ``path`` is a folder that ``DistilledDataset.save_pretrained`` wrote."""
    return path.is_dir() and all(
        (path / name).is_file() for name in ("config.json", "data.safetensors")
    )


def read_artefact(path: Path, reading: Reading) -> RawData:
    """Read the images of a folder that ``DistilledDataset.save_pretrained`` wrote.

    Raises:
        DataError: The folder is damaged.
    """
    file = path / "data.safetensors"
    try:
        with safe_open(file, framework="np") as stream:
            classes = json.loads((stream.metadata() or {})["kdistill"])["classes"]
            arrays = {
                "x_train": stream.get_tensor("images"),
                "y_train": stream.get_tensor("labels"),
                "classes": np.array(classes, dtype=str),
            }
            if "label_logits" in stream.keys():  # noqa: SIM118 - no mapping
                arrays["label_logits"] = arrays["y_train"]  # only that there are some is said
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        got = f"{file} ({_first_line(error)})"
        raise unusable("a set that kdistill saved", got, "save it again") from error
    return read_distilled(arrays, reading, where=path.name)


def read_distilled(arrays: Mapping[str, Any], reading: Reading, *, where: str) -> RawData:
    """Read a distilled set, such as ``DistilledDataset.to_npz`` wrote.

    Its pixels leave [0, 1] by themselves, and are clipped.
    """
    images = arrays["x_train"]
    pair = {"x_train": images.clip(0.0, 1.0), "y_train": arrays["y_train"]}
    raw = read_mapping(pair, reading, where=where)
    reading.notes.append("a set that kdistill distilled")
    if images.size and (images.min() < 0.0 or images.max() > 1.0):
        low, high = images.min(), images.max()
        reading.notes.append(f"pixels {low:.3g}..{high:.3g} clipped to 0..1")
    if "label_logits" in arrays:
        reading.notes.append("learned soft labels left out")
    names = tuple(map(str, np.asarray(arrays["classes"]).ravel())) if "classes" in arrays else None
    return replace(raw, train=replace(raw.train, names=names), is_distilled=True)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _fix(error: Exception) -> str:
    if isinstance(error, TooLarge):
        return error.hint
    if isinstance(error, pickle.UnpicklingError) or "pickle" in str(error).lower():
        return "pickled objects are never executed: save plain arrays"
    return "copy or download it again"
