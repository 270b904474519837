"""Files of arrays: ``.npz``, ``.safetensors`` and ``.pt``.  Nothing that a file could execute is ever executed."""

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
from kdistill.data.raw_data import RawData, unusable
from kdistill.errors import did_you_mean
from kdistill.files.bounded_read import TooLarge, load_tensors, read_npz

_OURS = (
    "kdistill",
    "label_logits",
    "classes",
)  # beside images and labels, in a set that kdistill exported
_WANTED = frozenset(
    {name for pairs in PAIRS.values() for pair in pairs for name in pair} | set(_OURS)
)


def read_file(path: Path, size: int | None) -> RawData:
    """Read a file of named arrays, or a ``.pt`` file with a pair (images, labels).

    Raises:
        DataError: Unknown kind of file, a damaged one, one that holds pickled objects, or one
            without images and labels.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise unusable(
            "a folder or a file of a known kind", path.name, did_you_mean(suffix, list(READERS))
        )
    try:
        arrays = READERS[suffix](path)
    except (
        Exception
    ) as error:  # of any kind: a damaged pickle raises IndexError, struct.error and more
        raise unusable(
            f"a whole {suffix} file of arrays", f"{path} ({_first_line(error)})", _fix(error)
        ) from error
    if (
        suffix == ".npz"
        and {"kdistill", "x_train", "y_train"} <= set(arrays)
        and arrays["x_train"].dtype.kind == "f"
    ):
        return read_distilled(arrays, size, where=path.name)
    if isinstance(arrays, Mapping):
        return read_mapping(arrays, size, where=path.name)
    if isinstance(arrays, tuple | list) and len(arrays) == 2:
        notes: list[str] = []
        return RawData(read_pair(arrays[0], arrays[1], size, notes=notes), notes=notes)
    raise unusable(
        f"a dict or a pair (images, labels) in {path.name}", type(arrays).__name__, "save one"
    )


def is_artefact(path: Path) -> bool:
    """Return whether ``path`` is a folder that ``DistilledDataset.save_pretrained`` wrote."""
    return path.is_dir() and all(
        (path / name).is_file() for name in ("config.json", "data.safetensors")
    )


def read_artefact(path: Path, size: int | None) -> RawData:
    """Read the images of a folder that ``DistilledDataset.save_pretrained`` wrote.

    Raises:
        DataError: The folder is damaged.
    """
    file = path / "data.safetensors"
    try:
        with safe_open(file, framework="np") as stream:
            classes = json.loads((stream.metadata() or {})["kdistill"])["classes"]
            arrays = {name: stream.get_tensor(name) for name in ("images", "labels")}
            has_logits = "label_logits" in stream.keys()  # noqa: SIM118 - no mapping
            arrays |= {"label_logits": arrays["labels"]} if has_logits else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        raise unusable(
            "a set that kdistill saved", f"{file} ({_first_line(error)})", "save it again"
        ) from error
    arrays = {
        **arrays,
        "x_train": arrays.pop("images"),
        "y_train": arrays.pop("labels"),
        "classes": np.array(classes, dtype=str),
    }
    return read_distilled(arrays, size, where=path.name)


def read_distilled(arrays: Mapping[str, Any], size: int | None, *, where: str) -> RawData:
    """Read a distilled set, such as ``DistilledDataset.to_npz`` wrote: its pixels leave [0, 1] by themselves."""
    images = arrays["x_train"]
    raw = read_mapping(
        {"x_train": images.clip(0.0, 1.0), "y_train": arrays["y_train"]}, size, where=where
    )
    notes = ["a set that kdistill distilled"]
    if images.size and (images.min() < 0.0 or images.max() > 1.0):
        notes.append(f"pixels {images.min():.3g}..{images.max():.3g} clipped to 0..1")
    if "label_logits" in arrays:
        notes.append("learned soft labels left out")
    names = tuple(map(str, np.asarray(arrays["classes"]).ravel())) if "classes" in arrays else None
    return replace(
        raw, train=replace(raw.train, names=names), is_distilled=True, notes=[*raw.notes, *notes]
    )


def _read_named(path: Path) -> dict[str, Any]:
    """Return the arrays of an ``.npz`` file that have a name we know; the others are not decoded."""
    return read_npz(path, _WANTED)


READERS: dict[str, Callable[[Path], Any]] = {
    ".npz": _read_named,
    ".safetensors": load_file,
    ".pt": load_tensors,
    ".pth": load_tensors,
}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _fix(error: Exception) -> str:
    if isinstance(error, TooLarge):
        return error.hint
    text = str(error).lower()
    pickled = isinstance(error, pickle.UnpicklingError) or "pickle" in text
    return (
        "pickled objects are never executed: save plain arrays"
        if pickled
        else "copy or download it again"
    )
