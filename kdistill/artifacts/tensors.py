"""Tensors to bytes and back: safetensors with all metadata under one JSON key, and JSON that is the same for the same content.

One key, because safetensors writes several in the order of a hash table and the file would differ from run to run.
"""

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load
from safetensors.torch import save as _save
from torch import Tensor

from kdistill.errors import DataError

METADATA_KEY = "kdistill"


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Return the bytes of a safetensors file; equal inputs give equal bytes.

    Args:
        tensors: Any shapes and dtypes; moved to the CPU, made contiguous.
        metadata: What JSON can hold.
    """
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    return _save(plain, metadata={METADATA_KEY: json.dumps(jsonable(metadata), sort_keys=True, allow_nan=False)})


def decode(data: bytes, where: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a file that :func:`encode` made.

    Raises:
        DataError: The bytes are truncated or damaged, or the file was not written by kdistill.
    """
    try:
        tensors = _load(data)
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError, struct.error) as error:
        raise DataError(f"{where}: expected a whole safetensors file, got {len(data)} bytes that are damaged or cut off "
                        f"({error}); restore it from a copy") from error  # fmt: skip
    try:
        metadata = json.loads(header["__metadata__"][METADATA_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: expected a file written by kdistill, got safetensors without its metadata; "
                        "load plain tensors with load_data or import_published") from error  # fmt: skip
    return tensors, metadata


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Return the sha256 of names, dtypes, shapes, bytes and metadata: the content, however a file lays it out."""
    total = hashlib.sha256(json.dumps(jsonable(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def to_json(value: object) -> bytes:
    """Return readable JSON, keys sorted, ending in a newline; equal values give equal bytes."""
    return (json.dumps(jsonable(value), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def jsonable(value: Any, where: str = "") -> Any:
    """Return ``value`` made of what JSON can hold.

    Tuples become lists, paths strings, NumPy and torch scalars numbers, dataclasses tables, and numbers that JSON lacks the
    strings ``"inf"``, ``"-inf"`` and ``"nan"``.

    Raises:
        DataError: A value of another kind; the message names its place.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Path):
        return utf8(str(value))
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return jsonable(value.item(), where)
    if isinstance(value, (np.ndarray, Tensor)):
        return jsonable(value.tolist(), where)
    if isinstance(value, Mapping):
        return {utf8(str(key)): jsonable(entry, f"{where}.{key}" if where else str(key)) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, where)
    raise DataError(
        f"{where or 'value'}: expected something that JSON can hold, got a {type(value).__name__}; convert it to numbers or text"
    )


def utf8(text: str) -> str:
    """Return ``text`` without what UTF-8 cannot hold: a file name of other bytes arrives in Python as lone surrogates."""
    return text.encode("utf-8", "replace").decode()
