"""The cache of baselines, so that the next evaluation on the same data need not train them.

An entry is named by everything that decides its numbers: data, recipe, seed, code, versions, thread
count, instruction set.  It is one safetensors file in a folder under ``$KDISTILL_CACHE`` that only
its owner can write; a missing or damaged one is trained again.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from kdistill import _native
from kdistill.artifacts.checkpoint import decode_checkpoint, encode_checkpoint
from kdistill.artifacts.tensors import jsonable
from kdistill.cache import CacheFile, digest_of
from kdistill.engine.convolve import asked_convolution
from kdistill.errors import DataError
from kdistill.evaluation.rows import Row
from kdistill.ops import requested_backend

T = TypeVar("T")
_PACKAGE = Path(__file__).parents[1]
_DECIDES = (
    "engine",
    "ops",
    "backends",
    "evaluation",
    "selection",
    "augment.py",
    "keys.py",
    "transforms.py",
    "data/splits.py",
)


@cache
def code_digest() -> str:
    """Return a digest over the sources and compiled modules that decide the numbers."""
    files = [
        path
        for name in _DECIDES
        for path in ([_PACKAGE / name] if name.endswith(".py") else (_PACKAGE / name).rglob("*.py"))
    ]
    for pattern in ("_cpu*.so", "_cuda.*.so"):
        files += Path(os.environ.get("KDISTILL_NATIVE_DIR") or _PACKAGE).glob(pattern)
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.name}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def name_of(identity: Mapping[str, Any]) -> str:
    """Return the digest that names the entry of ``identity``, under this code and environment."""
    chosen = {"backend": requested_backend(), "convolution": asked_convolution()}
    full = {**identity, **chosen, "environment": _native.environment(), "code": code_digest()}
    return digest_of(jsonable(full), 32)


def load(name: str, check: Callable[[dict[str, Tensor], Mapping[str, Any]], T]) -> T | None:
    """Return what ``check`` makes of the tensors and facts of an entry.

    Returns:
        None where there is no entry or, with a warning, none that ``check`` accepts.
    """

    def checked(content: bytes, path: Path) -> T:
        tensors, entry = decode_checkpoint(content, path)
        if entry["entry"] != name:
            raise DataError(f"{path}: expected the baseline that its name says, got another")
        return check(tensors, dict(entry["facts"]))

    return _file(name).read(checked)


def save(name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write an entry; if that is not possible, the next evaluation trains the baseline again."""
    _file(name).write(encode_checkpoint(tensors, {"entry": name, "facts": facts}))


def _file(name: str) -> CacheFile:
    return CacheFile("baselines", f"{name}.safetensors", "the baseline is trained again")


def implausibility(
    row: Row, nets: int, test_counts: Sequence[int], has_validation: bool
) -> str | None:
    """Return what of a row cannot have been measured, in words, or None.

    Args:
        row: Row of one evaluation, not merged.
        nets: Networks of the protocol.
        test_counts: Test images of every class, ``[K]``.
        has_validation: Whether images were held out.
    """
    lengths = {
        "accuracies": nets,
        "validation": nets * has_validation,
        "balanced": nets,
        "per_class": len(test_counts),
        "lr": 1,
    }
    if row.best_on_test is not None:
        lengths["best_on_test"] = nets
    for name, count in lengths.items():
        values = getattr(row, name)
        if len(values) != count:
            return f"{name} of {len(values)} numbers"
        if not all(value >= 0.0 and math.isfinite(value) for value in values):
            return f"{name} below 0 or not finite"
        if name != "lr" and not all(value <= 1.0 for value in values):
            return f"{name} above 1"
    counts = (row.epochs, row.images, row.nbytes, row.sets, row.seconds)
    if min(counts) < 0 or not math.isfinite(row.seconds) or not 0 <= row.untrained <= nets:
        return "sizes that nothing has"
    return _confusion_implausibility(row, nets, test_counts) if row.confusion else None


def _confusion_implausibility(row: Row, nets: int, test_counts: Sequence[int]) -> str | None:
    lengths = [len(row.confusion), *map(len, row.confusion)]
    if set(lengths) != {len(test_counts)} or min(chain(*row.confusion)) < 0:
        return "a confusion matrix of other classes"
    if list(map(sum, row.confusion)) != [nets * images for images in test_counts]:
        return "a confusion matrix of other test images"
    right = sum(line[number] for number, line in enumerate(row.confusion))
    if not math.isclose(right / sum(test_counts), sum(row.accuracies), abs_tol=1e-6):
        return "accuracies that disagree with the confusion matrix"
    return None
