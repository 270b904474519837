"""Checksummed checkpoints: one safetensors file, and the previous one until the new one is complete."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kdistill.artifacts.atomic import explained, remove_leftovers, sync_folder, temporary_name, write_atomic
from kdistill.artifacts.tensors import decode, digest, encode, jsonable
from kdistill.errors import DataError

_log = logging.getLogger("kdistill")
_SCHEMA = 1


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one that ``path`` held before stays beside it as ``<path>.prev``.

    Killed at any moment, at least one of the two is complete.

    Args:
        path: File to write.
        tensors: Any names, shapes, dtypes and devices.
        meta: What JSON can hold; tuples come back as lists.

    Raises:
        DataError: The place cannot be written, or the disk is full; the earlier checkpoint is unchanged.

    Cost: one copy of the tensors in memory, one pass of sha256 over them.
    """
    path = Path(os.path.realpath(path))
    meta = jsonable(meta)
    data = encode(tensors, {"schema_version": _SCHEMA, "meta": meta, "sha256": digest(tensors, meta)})
    remove_leftovers(path)
    fresh = temporary_name(path)
    try:
        with explained(path, len(data)):
            write_atomic(fresh, data)
            if path.exists():
                os.replace(path, _previous(path))
            os.replace(fresh, path)
            sync_folder(path.parent)
    finally:
        if fresh.exists():
            fresh.unlink()


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint, or the previous one if it is missing or damaged (with a warning that says so).

    Returns:
        The tensors, on the CPU, and ``meta``.

    Raises:
        DataError: Neither of the two files is complete.
    """
    path = Path(os.path.realpath(path))
    try:
        return _read(path)
    except DataError as error:
        if not _previous(path).exists():
            raise
        try:
            found = _read(_previous(path))
        except DataError:
            raise error from None
        _log.warning("%s; using the previous checkpoint %s", error, _previous(path).name)
        return found


def first_difference(ours: Any, theirs: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return the dotted key of the first value in which two nested mappings differ, and both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}):
            found = first_difference(ours.get(key), theirs.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if ours == theirs else (path, ours, theirs)


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".prev")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected a checkpoint, got: {error.strerror}; start afresh or check the path") from error
    tensors, envelope = decode(data, path)
    fields = envelope if isinstance(envelope, dict) else {}
    if fields.get("schema_version") != _SCHEMA or not {"meta", "sha256"} <= set(fields):
        raise DataError(
            f"{path}: expected a checkpoint of schema version {_SCHEMA}, got {fields.get('schema_version')}; "
            "continue with the kdistill that wrote it, or start afresh"
        )
    if digest(tensors, fields["meta"]) != fields["sha256"]:
        raise DataError(
            f"{path}: expected the contents that its checksum names, got others; it was damaged or changed, start afresh"
        )
    return tensors, fields["meta"]
