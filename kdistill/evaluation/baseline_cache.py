"""Baselines that were trained before, so that the next evaluation on the same data does not train them again.

An entry is named by everything that decides its numbers: data, recipe, seed, code, versions, thread
count, instruction set. It is one safetensors file in a folder under ``$KDISTILL_CACHE`` that only
its owner can write; a missing or damaged one is trained again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from kdistill import _native
from kdistill.artifacts.tensors import decode, digest, encode, jsonable
from kdistill.cache import cache_folder, is_trusted, make_private, read_private
from kdistill.engine.winograd_rule import asked_convolution
from kdistill.errors import DataError
from kdistill.files import remove_leftovers, write_atomic
from kdistill.ops._registry import asked_backend

_log = logging.getLogger("kdistill")
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
    """Return a digest over the source files and compiled modules that training and testing run through."""
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


def name_of(what: Mapping[str, Any]) -> str:
    """Return the digest that names the entry of ``what``, under the present code and environment."""
    chosen = {"backend": asked_backend(), "convolution": asked_convolution()}
    full = {**what, **chosen, "environment": _native.environment(), "code": code_digest()}
    return hashlib.sha256(json.dumps(jsonable(full), sort_keys=True).encode()).hexdigest()[:32]


def path_of(name: str) -> Path | None:
    """Return the file of an entry, or None for a user without a cache folder."""
    try:
        return cache_folder() / "baselines" / f"{name}.safetensors"
    except RuntimeError:
        return None


def load(name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and facts of an entry, or None if there is none that can be read, with a warning that says why."""
    path = path_of(name)
    if path is None or not os.path.lexists(path) or not is_trusted(path.parent):
        return None
    try:
        tensors, envelope = decode(read_private(path), path)
        if (
            not isinstance(envelope, dict)
            or envelope.get("entry") != name
            or not isinstance(envelope.get("facts"), dict)
        ):
            raise DataError(f"{path}: expected the baseline that its name says, got another")
        if digest(tensors, envelope["facts"]) != envelope.get("sha256"):
            raise DataError(f"{path}: expected the contents that its checksum names, got others")
    except (OSError, DataError) as error:
        refuse(error)
        return None
    return tensors, envelope["facts"]


def refuse(reason: Exception) -> None:
    """Say that an entry is not used."""
    text = reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)
    _log.warning("evaluate: a kept baseline cannot be used and is trained again (%s)", text)


def save(name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Keep an entry; a place that cannot be written only costs the next evaluation its time, so it is said and not raised."""
    path = path_of(name)
    if path is None or not is_trusted(path.parent):
        return
    facts = jsonable(facts)
    try:
        make_private(path.parent)
        remove_leftovers(path.parent)
        write_atomic(
            path,
            encode(tensors, {"entry": name, "facts": facts, "sha256": digest(tensors, facts)}),
            mode=0o600,
        )
    except (OSError, DataError) as error:
        text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        _log.warning("evaluate: the baseline is not kept for the next evaluation (%s)", text)
