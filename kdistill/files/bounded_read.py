"""Files of arrays and tensors, read within what their size allows.

A small file cannot fill the memory: a compressed archive, a tensor of stride 0 or a call that is
repeated can describe a thousand times the bytes that the file has.  What a file describes is found
out first, without making it; ``torch.load`` is asked only where it can make no more than that.
"""

import io
import math
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from kdistill.files.inert_pickle import Name, NotReadable, Parsed, Reference, parse

# bytes that any file may describe, and bytes for each of its own
ALLOWANCE, PER_BYTE = 32 << 20, 32
# the first pickle of a torch.save in the format of before 2020
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NPY_MAGIC = b"\x93NUMPY"
_ENTRY_NBYTES = 64  # of a number or text in a list
_MAX_DEPTH = 32  # of lists in lists
_SHORT = 100  # bytes of a NumPy scalar, entries of an object's state

_REBUILD = {
    f"torch._utils.{name}"
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
}
_REBUILD |= {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_NUMPY = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"}
_KNOWN = {
    *_REBUILD,
    *_NUMPY,
    "collections.OrderedDict",
    "_codecs.encode",
    "torch.storage.UntypedStorage",
}


class TooLarge(ValueError):
    """A file that describes more than its size allows; ``hint`` says what to do."""

    def __init__(self, described: int, file_nbytes: int, hint: str):
        megabytes = "{:,} MB".format
        super().__init__(
            f"it describes {megabytes(-(-described // 10**6))}, where a file of {file_nbytes:,} "
            f"bytes may describe {megabytes(allowed_nbytes(file_nbytes) // 10**6)}"
        )
        self.hint = hint


def allowed_nbytes(file_nbytes: int) -> int:
    """Return how many bytes a file may describe: 32 for each of its own, and 32 MiB."""
    return ALLOWANCE + PER_BYTE * file_nbytes


def read_npz(source: Path | bytes, wanted: frozenset[str] | None = None) -> dict[str, Any]:
    """Return the arrays of an ``.npz`` file; never unpickles.

    Args:
        source: Path or content of the file.
        wanted: Names, in lower case, of the arrays to decode; None decodes all.  The others come as
            None.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: The file is missing, damaged, no archive of plain
            arrays, or describes too much.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        if stream.read(len(_NPY_MAGIC)) == _NPY_MAGIC:
            raise ValueError("a single array, not an archive of named ones")
        size = stream.seek(0, io.SEEK_END)
        with zipfile.ZipFile(stream) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            chosen = [
                info for name, info in members.items() if wanted is None or name.lower() in wanted
            ]
            described = sum(_described_nbytes(archive, info) for info in chosen)
            if described > allowed_nbytes(size):
                raise TooLarge(
                    described,
                    size,
                    "if that is meant, save it with numpy.savez, which does not compress",
                )
            return {
                name: _array(archive, info) if info in chosen else None
                for name, info in members.items()
            }


def _described_nbytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Return the size of an array in memory, from its header."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename}: an array of version {version}")
        is_first = version == (1, 0)
        form = np.lib.format
        read = form.read_array_header_1_0 if is_first else form.read_array_header_2_0
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"{info.filename}: pickled objects")
    return max(0, math.prod(shape)) * dtype.itemsize


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def load_tensors(path: Path) -> Any:
    """Return what ``torch.save`` wrote: tensors, numbers, text, and lists and dictionaries of them.

    Raises:
        OSError: The file cannot be opened.
        pickle.UnpicklingError: It names anything else than tensors and numbers.
        ValueError, RuntimeError, EOFError, KeyError, TypeError, IndexError, zipfile.BadZipFile: It
            is damaged.
        TooLarge: It describes more than its size allows.

    Cost: two passes over the pickle in it.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        is_archive = stream.read(4) == b"PK\x03\x04"
        stream.seek(0)
        try:
            _check_archive(stream, size) if is_archive else _check_legacy(stream, size)
        except NotReadable as error:
            raise pickle.UnpicklingError(str(error)) from error
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for described in _described(loaded):
        if described > allowed_nbytes(size):
            raise TooLarge(
                described,
                size,
                "if that is meant, pass the tensors themselves, or save contiguous ones",
            )
    return loaded


def _check_archive(stream: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        names = [info.filename.lower() for info in members]
        if len(set(names)) < len(names):
            raise ValueError("an archive in which a name stands twice")
        unpacked = sum(info.file_size for info in members)
        if unpacked > allowed_nbytes(size):
            raise TooLarge(unpacked, size, "save it with torch.save, which does not compress")
        for info in members:
            if info.filename.lower().endswith("data.pkl"):
                _check_described(parse(archive.read(info), plain=True), size)


def _check_legacy(stream: BinaryIO, size: int) -> None:
    with suppress(tarfile.TarError):
        tarfile.open(fileobj=stream, mode="r:").close()
        raise ValueError("an archive of a torch of before 2017")
    stream.seek(0)
    if parse(stream).value != LEGACY_MAGIC:
        raise pickle.UnpicklingError(
            "a pickle that torch.save did not write; pickled objects are not loaded"
        )
    for _ in range(4):  # version, facts about the system, the content, the storages' keys
        _check_described(parse(stream, plain=True), size)


def _check_described(parsed: Parsed, size: int) -> None:
    """Refuse what can make more than the file allows.

    Such are names and calls that torch.save does not write, and larger storages.
    """
    odd = next((str(name) for name in sorted(parsed.names, key=str) if not _is_known(name)), None)
    if odd is not None:
        raise pickle.UnpicklingError(f"it names {odd}; pickled objects are not loaded")
    for call in parsed.calls:
        maker = str(call.maker) if isinstance(call.maker, Name) else "a call"
        first = call.arguments[0] if call.arguments else ""
        is_small = not isinstance(call.state, (dict, list)) or len(call.state) <= _SHORT
        if maker == "_codecs.encode":
            is_small = isinstance(first, str) and len(first) <= _SHORT
        is_filled = maker == "collections.OrderedDict" and call.arguments
        if not is_small or maker not in _KNOWN or is_filled:
            raise pickle.UnpicklingError(f"a call of {maker} that torch.save does not write")
    storages = {_storage(reference) for reference in parsed.references}
    nbytes = sum(nbytes for _, nbytes in storages)
    if nbytes > allowed_nbytes(size):
        raise TooLarge(nbytes, size, "it is cut off: copy or download it again")


def _is_known(name: Name) -> bool:
    if name.module == "torch" and (
        name.name.endswith("Storage") or isinstance(getattr(torch, name.name, None), torch.dtype)
    ):
        return True
    return str(name) in _KNOWN


def _storage(reference: Reference) -> tuple[str, int]:
    """Return key and bytes of a storage, which torch makes before it reads it."""
    match reference.to:
        case ("storage", Name(name=kind), str(key), _, int(count), *_) if (
            not isinstance(count, bool) and count >= 0
        ):
            return key, count * STORAGES.get(kind, torch.complex128).itemsize
    raise pickle.UnpicklingError("a persistent id that is no storage")


def _described(value: Any) -> Iterator[int]:
    """Yield how many bytes tensors, numbers and texts describe, as they are counted.

    A list that holds one tensor, or one list, a thousand times describes it a thousand times.
    """
    total = 0
    waiting = [(value, 0)]
    while waiting:
        entry, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise ValueError(f"lists nested more than {_MAX_DEPTH} deep")
        if isinstance(entry, Tensor):
            total += entry.numel() * entry.element_size()
        elif isinstance(entry, (dict, list, tuple)):
            waiting += [
                (each, depth + 1) for each in (entry.values() if isinstance(entry, dict) else entry)
            ]
            total += _ENTRY_NBYTES * len(entry)
        yield total
