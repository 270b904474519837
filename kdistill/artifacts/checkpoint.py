"""Checksummed checkpoints: a safetensors file, and the previous one until it is complete."""

import json
import logging
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kdistill.artifacts.tensors import METADATA_KEY, decode, digest, encode, jsonable
from kdistill.errors import DataError
from kdistill.files import explained, open_regular, read_regular, remove_leftovers, sync_folder
from kdistill.files.safe_files import JSON_LIMIT, check_replaceable, temporary_name, write_new

_log = logging.getLogger("kdistill")
_SCHEMA = 1


def save_checkpoint(
    path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Write a checkpoint; the one that ``path`` held before stays beside it as ``<path>.prev``.

    Killed at any moment, at least one of the two is complete.

    Args:
        path: File to write.
        tensors: Any names, shapes, dtypes and devices.
        meta: What JSON can hold; tuples come back as lists.

    Raises:
        DataError: The place cannot be written, or the disk is full; the earlier checkpoint is
            unchanged.

    Cost: one copy of the tensors in memory, one pass of sha256 over them.
    """
    path = Path(path)
    data = encode_checkpoint(tensors, meta)
    with explained(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        check_replaceable(path)
        fresh = temporary_name(path)
        try:
            write_new(fresh, data)
            if os.path.lexists(path):
                os.replace(path, _previous(path))
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(path.parent)


def encode_checkpoint(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """Return the content of a checkpoint file."""
    meta = jsonable(meta)
    return encode(
        tensors, {"schema_version": _SCHEMA, "meta": meta, "sha256": digest(tensors, meta)}
    )


def checkpoint_meta(path: str | Path) -> dict[str, Any] | None:
    """Return ``meta`` of a checkpoint, or of the previous one; None where neither can be read.

    Only the first bytes are read: the tensors are neither read nor checked.
    """
    path = Path(path)
    for place in (path, _previous(path)):
        try:
            with open_regular(place) as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, JSON_LIMIT)))
            meta = json.loads(header["__metadata__"][METADATA_KEY])["meta"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error):
            continue
        if isinstance(meta, dict):
            return meta
    return None


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint, or the previous one, with a warning, if it is missing or damaged.

    Returns:
        The tensors, on the CPU, and ``meta``.

    Raises:
        DataError: Neither of the two files is complete.
    """
    path = Path(path)
    try:
        return _read(path)
    except DataError as error:
        if not _previous(path).exists():
            raise
        try:
            previous = _read(_previous(path))
        except DataError:
            raise error from None
        _log.warning("%s; using the previous checkpoint %s", error, _previous(path).name)
        return previous


def first_difference(ours: Any, theirs: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return the dotted key of the first difference of two nested tables, and both values."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return None if ours == theirs else (path, ours, theirs)
    for key in sorted({*ours, *theirs}):
        place = f"{path}.{key}" if path else str(key)
        if difference := first_difference(ours.get(key), theirs.get(key), place):
            return difference
    return None


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".prev")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        data = read_regular(path)
    except OSError as error:
        raise DataError(
            f"{path}: expected a checkpoint, got: {error.strerror}; start afresh or check the path"
        ) from error
    return decode_checkpoint(data, path)


def decode_checkpoint(content: bytes, path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and ``meta`` that ``encode_checkpoint`` wrote.

    Raises:
        DataError: The content of ``path`` is no checkpoint, of another version, or damaged.
    """
    tensors, fields = decode(content, path)
    if fields.get("schema_version") != _SCHEMA or not {"meta", "sha256"} <= set(fields):
        raise DataError(
            f"{path}: expected a checkpoint of schema version {_SCHEMA}, got "
            f"{fields.get('schema_version')}; continue with the kdistill that wrote it, or start "
            "afresh"
        )
    if digest(tensors, fields["meta"]) != fields["sha256"]:
        raise DataError(
            f"{path}: expected the contents that its checksum names, got others; it was damaged or "
            "changed, start afresh"
        )
    return tensors, fields["meta"]
