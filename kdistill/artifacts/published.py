"""Sets that other code published, as pixels.

These are the tensors of MTT, TESLA, DATM and PAD, and the result files of DC, DSA and DM.  Files
are read with ``weights_only=True``: tensors and numbers, never code.
"""

import logging
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from kdistill.artifacts.distilled_dataset import DistilledDataset
from kdistill.errors import DataError
from kdistill.files.bounded_read import TooLarge, load_tensors
from kdistill.transforms import Transform

_log = logging.getLogger("kdistill")

# DC's result files keep accuracies as NumPy scalars; these names rebuild numbers and nothing else
_SCALAR = np.float64(0.0).__reduce__()[0]  # NumPy has moved it
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
]
_NUMBERS += [type(np.dtype(code)) for code in ("f4", "f8", "i8")]


def import_published(
    images_pt: str | Path,
    labels_pt: str | Path | None = None,
    lr_pt: str | Path | None = None,
    *,
    transform: Transform,
    classes: Sequence[str] | None = None,
    experiment: int = 0,
) -> DistilledDataset:
    """Read a published set and undo its normalisation.

    Args:
        images_pt: ``images_best.pt`` (normalised images, float ``[N, C, H, W]``), or ``res_*.pt``
            of DC, DSA and DM.
        labels_pt: ``labels_best.pt``: int64 ``[N]``, or float label logits ``[N, K]`` as DATM and
            PAD learn them.  If None, ``labels_*.pt`` beside ``images_*.pt`` is taken; without one,
            rows are in class order, equally many per class.
        lr_pt: ``lr_best.pt``, one number; if None, the one beside ``images_*.pt`` is taken.
        transform: Normalisation of the set: ``Standardise``, ``Zca``, or ``Identity`` for
            ``images_zca_*.pt``, which is in pixel space already.
        classes: Names; needed where there are no labels.
        experiment: Number of the repetition in a DC result file.

    Raises:
        DataError: A file is missing, holds something else than tensors and numbers, or the parts do
            not fit together.
        ShapeError: ``transform`` is for other images.
    """
    images_pt = Path(images_pt)
    content = _read(images_pt)
    if isinstance(content, dict):
        images, labels = _experiment(images_pt, content, experiment)
        lr_pt = None if lr_pt is None else Path(lr_pt)
    else:
        images, labels = content, None
        labels_pt = _beside(images_pt, "labels") if labels_pt is None else Path(labels_pt)
        lr_pt = _beside(images_pt, "lr") if lr_pt is None else Path(lr_pt)
    if labels_pt is not None:
        labels = _read(Path(labels_pt))
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise DataError(
            f"{images_pt}: expected a float tensor [N, C, H, W], got {_kind(images)}; name the "
            "file with the images"
        )
    hard, logits = _labels(labels, len(images), classes, labels_pt or images_pt)
    return DistilledDataset(
        images=transform.invert(images.detach().float()),
        labels=hard,
        label_logits=logits,
        learned_lr=None if lr_pt is None else _number(lr_pt),
        classes=tuple(classes or ()),
        config={"source": {"published": images_pt.name}},
        transform=transform,
    )


def _read(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return load_tensors(path)
    except OSError as error:
        raise DataError(
            f"{path}: expected a file of tensors, got: {error.strerror or error}; check the path"
        ) from error
    except TooLarge as error:
        raise DataError(
            f"{path}: expected tensors in proportion to the file, got more: {error}; {error.hint}"
        ) from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: expected tensors and numbers, got a file that is damaged or holds code, "
            "which kdistill never runs; save the plain tensor with torch.save"
        ) from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        BadZipFile,
    ) as error:
        raise DataError(
            f"{path}: expected a file written by torch.save, got: {error!s:.120}; it is damaged or "
            "cut off"
        ) from error


def _beside(images: Path, part: str) -> Path | None:
    """Find ``labels_best.pt`` beside ``images_best.pt``."""
    if not images.name.startswith("images"):
        return None
    path = images.with_name(part + images.name.removeprefix("images").replace("_zca", ""))
    if not path.exists():
        return None
    _log.info("%s: taking %s from %s", images.name, part, path.name)
    return path


def _experiment(path: Path, content: dict[str, Any], experiment: int) -> tuple[Any, Any]:
    data = content.get("data")
    if not isinstance(data, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in data
    ):
        raise DataError(
            f"{path}: expected {{'data': [[images, labels], ...]}}, got the keys "
            f"{sorted(map(str, content))}; name a file with images"
        )
    if not -len(data) <= experiment < len(data):
        raise DataError(
            f"{path}: expected experiment 0..{len(data) - 1}, got {experiment}; choose one that is "
            "in the file"
        )
    if len(data) > 1:
        _log.info("%s: taking experiment %d of %d", path.name, experiment, len(data))
    return tuple(data[experiment])


def _labels(
    labels: Any, count: int, classes: Sequence[str] | None, where: str | Path
) -> tuple[Tensor, Tensor | None]:
    """Return hard labels and, if there are any, label logits."""
    if labels is None:
        if not classes or count % len(classes):
            known = f"{len(classes)} classes" if classes else "no class names"
            raise DataError(
                f"{where}: expected labels for {count} images, got none and {known}; pass "
                "labels_pt, or the right classes"
            )
        return torch.arange(len(classes)).repeat_interleave(count // len(classes)), None
    if not isinstance(labels, Tensor) or labels.ndim not in (1, 2) or len(labels) != count:
        raise DataError(
            f"{where}: expected labels [{count}] or logits [{count}, K], got {_kind(labels)}; name "
            "the right file"
        )
    if labels.ndim == 2:
        return _classes_of(labels.detach(), where), labels.detach().float()
    if labels.is_floating_point() and not torch.equal(labels, labels.round()):
        raise DataError(
            f"{where}: expected whole class numbers, got fractions; name the right file"
        )
    return labels.detach().long(), None


def _classes_of(logits: Tensor, where: str | Path) -> Tensor:
    """Return the class of every image, int64 ``[N]``: the largest logit, or the class order.

    Published sets stand in class order, equally many images per class, and some learned labels are
    largest elsewhere: where few are, the order decides.
    """
    largest, (count, classes) = logits.argmax(1), logits.shape
    if not classes or count % classes:
        return largest
    ordered = torch.arange(classes, device=logits.device).repeat_interleave(count // classes)
    strays = int((largest != ordered).sum())
    is_even = bool((torch.bincount(largest, minlength=classes) == count // classes).all())
    if is_even or 3 * strays > count:  # many images stand elsewhere: not in class order
        return largest
    _log.warning(
        "%s: %d of %d soft labels are largest at another class; classes are taken from the order",
        where,
        strays,
        count,
    )
    return ordered


def _number(path: Path) -> float:
    value = _read(path)
    if not isinstance(value, int | float) and not (
        isinstance(value, Tensor) and value.numel() == 1
    ):
        raise DataError(
            f"{path}: expected one number, got {_kind(value)}; name the file with the learning rate"
        )
    return float(value)


def _kind(value: Any) -> str:
    return (
        f"{value.dtype} {list(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )
