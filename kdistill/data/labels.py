"""Labels of any kind to ``0..K-1`` with class names, the same numbers in every split."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kdistill.data.raw_data import RawPart, counted, unusable
from kdistill.errors import ConfigError


def map_labels(
    parts: dict[str, RawPart],
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Number the classes.

    The names come from ``classes``, else from the source, else they are ``"0".."K-1"`` if
    ``num_classes`` is given, else the distinct labels of the training part become the classes,
    sorted.  Where the source has names too, ``classes`` reorders them if it holds the same ones and
    renames them otherwise.

    Args:
        parts: ``"train"`` and others, as read.
        classes: Names in order; labels are then numbers into it, or names out of it.
        num_classes: K; labels must then lie in 0..K-1.

    Returns:
        int64 labels of every part, and the class names.

    Raises:
        ConfigError: ``classes`` and ``num_classes`` disagree, or a name stands twice.
        DataError: A label outside the classes, one class only, or a class without a training image.
    """
    train = parts["train"]
    names = tuple(map(str, classes)) if classes is not None else train.names
    if num_classes is not None and names is not None and len(names) != num_classes:
        raise ConfigError(
            f"num_classes: expected {len(names)} as there are class names, got {num_classes}; "
            "leave it out"
        )
    if names is not None and len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"classes: expected distinct names, got '{twice}' twice; rename one")
    if names is None and num_classes is not None:
        names = tuple(map(str, range(num_classes)))
    keys = np.unique(train.labels)
    if names is None:
        names = tuple(map(str, keys.tolist()))
        labels = {part: _look_up(each, keys, part) for part, each in parts.items()}
    else:
        labels = {part: _named(each, names, train.names, part) for part, each in parts.items()}
        if train.present_only and classes is None:
            present = torch.unique(labels["train"])
            labels = {
                part: _look_up(replace(p, labels=labels[part].numpy()), present.numpy(), part)
                for part, p in parts.items()
            }
            names = tuple(names[k] for k in present)
    _check_every_class(labels["train"], names)
    return labels, names


def _look_up(part: RawPart, keys: np.ndarray, where: str) -> Tensor:
    """Return the position of every label in ``keys`` (sorted)."""
    if part.labels.dtype.kind != keys.dtype.kind:
        kinds = {"U": "text", "i": "numbers"}
        got = f"{kinds[part.labels.dtype.kind]} where the training labels are {kinds[keys.dtype.kind]}"
        raise unusable(f"the labels of {where} to be of one kind", got, "use one kind for both")
    at = (
        np.searchsorted(keys, part.labels).clip(max=len(keys) - 1)
        if len(keys)
        else np.zeros(0, dtype=np.int64)
    )
    _refuse(
        part,
        keys[at] != part.labels if len(keys) else np.zeros(0, dtype=bool),
        where,
        "a class of the training images",
    )
    return torch.from_numpy(at.astype(np.int64))


def _named(
    part: RawPart, names: tuple[str, ...], source_names: tuple[str, ...] | None, where: str
) -> Tensor:
    """Return the position in ``names`` of every label, which is a name or (through the part's own names) a number."""
    index = {name: k for k, name in enumerate(names)}
    if part.labels.dtype.kind == "U":
        found = np.array([index.get(name, -1) for name in part.labels.tolist()], dtype=np.int64)
        _refuse(part, found < 0, where, "one of the class names")
        return torch.from_numpy(found)
    own = part.names or names
    _refuse(
        part, (part.labels < 0) | (part.labels >= len(own)), where, f"a label in 0..{len(own) - 1}"
    )
    if own == source_names and len(own) == len(names) and not set(own) <= set(names):
        return torch.from_numpy(part.labels)  # classes= gives other names to the same numbers
    found = np.array([index.get(name, -1) for name in own], dtype=np.int64)[part.labels]
    _refuse(
        replace(part, labels=np.array(own)[part.labels]), found < 0, where, "one of the class names"
    )
    return torch.from_numpy(found)


def _refuse(part: RawPart, wrong: np.ndarray, where: str, expected: str) -> None:
    if not wrong.any():
        return
    rows = np.flatnonzero(wrong)
    row = int(rows[0])
    name = part.paths[row] if part.paths else f"{where} image {row}"
    raise unusable(
        expected,
        f"{part.labels[row].item()!r} ({name}; {counted(len(rows), 'image')} in all)",
        "correct or remove them",
    )


def _check_every_class(labels: Tensor, names: tuple[str, ...]) -> None:
    if not len(labels):
        raise unusable("training images", "none", "add images")
    counts = torch.bincount(labels, minlength=len(names))
    if len(names) < 2:
        raise unusable("at least 2 classes", f"1 ('{names[0]}')", "add images of another class")
    if (counts == 0).any():
        empty = [names[k] for k in (counts == 0).nonzero().squeeze(1)]
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise unusable(
            "training images of every class",
            f"none of '{empty[0]}'{more}",
            "add some or drop the class",
        )
