"""Files of arrays: ``.npz``, ``.safetensors`` and ``.pt``; nothing in them is ever executed."""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from kdistill.data.in_memory import PAIRS, read_mapping, read_pair
from kdistill.data.raw_data import RawData, Reading, unusable
from kdistill.errors import did_you_mean
from kdistill.files.bounded_read import TooLarge, load_tensors, read_npz

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
