"""The cache of baselines, so that the next evaluation on the same data need not train them.

An entry is named by everything that decides its numbers: data, recipe, seed, code, versions, thread
count, instruction set.  It is one safetensors file in a folder under ``$KDISTILL_CACHE`` that only
its owner can write; a missing or damaged one is trained again.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from kdistill import _native
from kdistill.artifacts.checkpoint import decode_checkpoint, encode_checkpoint
from kdistill.artifacts.tensors import jsonable
from kdistill.cache import CacheFile, digest_of
from kdistill.engine.winograd_rule import asked_convolution
from kdistill.errors import DataError
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
