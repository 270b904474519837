"""Tensors and tables as bytes, equal for equal content: safetensors files and JSON.

All metadata of a file stands under one key, because safetensors writes several in the order of a
hash table and the file would differ from run to run.
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

from kdistill.config import MAX_DEPTH, is_too_deep
from kdistill.errors import DataError

METADATA_KEY = "kdistill"
# what kdistill writes; others (float8, complex, unsigned 16 bits and more) lack operations that
# every reader relies on
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
)


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Return the bytes of a safetensors file; equal inputs give equal bytes.

    Args:
        tensors: Any shapes and dtypes; moved to the CPU, made contiguous.
        metadata: What JSON can hold.
    """
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    return _save(
        plain,
        metadata={METADATA_KEY: json.dumps(jsonable(metadata), sort_keys=True, allow_nan=False)},
    )


def decode(data: bytes, where: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a file that :func:`encode` made.

    Raises:
        DataError: The bytes are truncated or damaged, or the file was not written by kdistill.
    """
    try:
        tensors = _load(data)
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RuntimeError,
        AttributeError,
        struct.error,
    ) as error:
        raise DataError(
            f"{where}: expected a whole safetensors file, got {len(data)} bytes that are damaged "
            f"or cut off ({error}); restore it from a copy"
        ) from error
    try:
        text = header["__metadata__"][METADATA_KEY]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{where}: expected a file written by kdistill, got safetensors without its metadata; "
            "load plain tensors with load_data or import_published"
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise DataError(
                f"{where}: expected tensors of plain numbers, got '{name}' of {tensor.dtype}; "
                "write the file again with kdistill"
            )
    return tensors, parse_table(text, f"{where}, its metadata", "restore the file from a copy")


def parse_table(text: str | bytes, where: str | Path, fix: str) -> dict[str, Any]:
    """Return the table that JSON text describes.

    Raises:
        DataError: Text that is no JSON, or no table, or nested more than
            ``kdistill.config.MAX_DEPTH`` deep.
    """
    try:
        value = json.loads(text)
        too_deep = is_too_deep(value)
    except RecursionError:
        too_deep = True
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: expected valid JSON, got: {error}; {fix}") from error
    if too_deep:
        raise DataError(
            f"{where}: expected at most {MAX_DEPTH} tables or lists in one another, got more; {fix}"
        )
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a table, got a {type(value).__name__}; {fix}")
    return value


def one_number(tensors: Mapping[str, Tensor], name: str, where: str | Path) -> float | None:
    """Return the number that a tensor holds, or None where there is no such tensor.

    Raises:
        DataError: It holds none, or several.
    """
    tensor = tensors.get(name)
    if tensor is None:
        return None
    if tensor.numel() != 1:
        raise DataError(
            f"{where}: expected one number as {name}, got {list(tensor.shape)}; write the file "
            "again"
        )
    return float(tensor)


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Return the sha256 of names, dtypes, shapes, bytes and metadata, in any layout."""
    total = hashlib.sha256(json.dumps(jsonable(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def to_json(value: object) -> bytes:
    """Return readable JSON, keys sorted, ending in a newline; equal values give equal bytes."""
    return (
        json.dumps(jsonable(value), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        + "\n"
    ).encode()


def jsonable(value: Any, where: str = "", depth: int = 0) -> Any:
    """Return ``value`` made of what JSON can hold; ``depth`` counts the tables and lists around it.

    Tuples become lists, paths strings, NumPy and torch scalars numbers, dataclasses tables, and
    numbers that JSON lacks the strings ``"inf"``, ``"-inf"`` and ``"nan"``.

    Raises:
        DataError: A value of another kind (the message names its place), or tables nested too
            deeply.
    """
    if depth > MAX_DEPTH:
        raise DataError(
            f"{where:.100}: expected at most {MAX_DEPTH} tables or lists in one another, got more; "
            "flatten them"
        )
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str | Path):
        return utf8(str(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return jsonable(value.tolist(), where, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {
            utf8(str(key)): jsonable(entry, f"{where}.{key}" if where else str(key), depth + 1)
            for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [jsonable(entry, f"{where}[{i}]", depth + 1) for i, entry in enumerate(value)]
    raise DataError(
        f"{where or 'value'}: expected something that JSON can hold, got a {type(value).__name__}; "
        "convert it to numbers or text"
    )


def utf8(text: str) -> str:
    """Return ``text`` without what UTF-8 cannot hold: lone surrogates, as of odd file names."""
    return text.encode("utf-8", "replace").decode()
