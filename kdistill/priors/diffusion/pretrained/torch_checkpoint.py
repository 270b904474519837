"""The tensors of a checkpoint that ``torch.save`` wrote, read without unpickling it.

Such a file is an archive of ``data.pkl`` (names, shapes, places) and one uncompressed member per
storage.  ``torch.load(weights_only=True)`` refuses a file that names classes of a training library
beside its tensors, as such checkpoints do; without it, it runs what a file says.
Here the pickle is parsed, never executed: what is no tensor is ignored, and tensors are copied from
the bytes of their members, one at a time.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from kdistill.errors import DataError
from kdistill.files import open_regular
from kdistill.files.bounded_read import STORAGES
from kdistill.files.hostile_names import hostile_names
from kdistill.files.inert_pickle import Made, Name, NotReadable, Reference, parse
from kdistill.priors.network_files.pickle_values import check_shape, require, strided_copy, table

MAGIC = b"PK\x03\x04"
MAX_PICKLE = 1 << 24  # bytes of data.pkl; that of a model of 900 M parameters has 600 kB
MAX_TENSORS, MAX_NAME = 50_000, 300
_REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETER = "torch._utils._rebuild_parameter"
# what reading the records of a damaged or hostile file can raise
_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        member: Member of the archive that holds its storage.
        dtype: Type of its numbers.
        count: Numbers in the storage.
        offset: Place of its first number.
        size: Shape.
        stride: Numbers between two neighbours along each axis.
    """

    member: str
    dtype: torch.dtype
    count: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class TorchCheckpoint:
    """An open checkpoint, a context manager.

    Attributes:
        path: The file.
        tensors: Places of the tensors of ``state_dict``, or of the file itself, by name.

    Raises:
        DataError: No such file, no checkpoint, a damaged one, or one that asks to run commands.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = open_regular(path, follow=True)
        except OSError as error:
            raise self._refused(str(error.strerror)) from error
        try:
            self._archive = zipfile.ZipFile(self._file)
            self.tensors = self._read_records()
        except (zipfile.BadZipFile, NotReadable, OSError, *_DAMAGED) as error:
            self._file.close()
            if isinstance(error, DataError):
                raise
            raise self._refused(_short(error)) from error

    def __enter__(self) -> "TorchCheckpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, name: str) -> Tensor:
        """Return a tensor in float32.

        Raises:
            DataError: There is none of this name, or its bytes are cut off.
        """
        if name not in self.tensors:
            raise self._refused(f"no tensor '{name}'")
        place = self.tensors[name]
        try:
            raw = bytearray(self._archive.read(place.member))
            require(len(raw) == place.count * place.dtype.itemsize, "a storage that is cut off")
            storage = torch.frombuffer(raw, dtype=place.dtype) if raw else torch.zeros(0)
            copy = strided_copy(storage, place.offset, place.size, place.stride)
        except (zipfile.BadZipFile, NotReadable, OSError, *_DAMAGED) as error:
            raise self._refused(f"a damaged '{name}' ({_short(error)})") from error
        return copy.to(torch.float32)

    def _read_records(self) -> dict[str, StoredTensor]:
        members = {info.filename: info for info in self._archive.infolist()}
        # torch.save compresses nothing; so no member is larger than the file
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in members.values())
        require(stored, "a compressed archive")
        pickles = [name for name in members if name.endswith("/data.pkl")]
        require(len(pickles) == 1, f"an archive with {len(pickles)} pickles")
        require(members[pickles[0]].file_size <= MAX_PICKLE, "a pickle that is too large")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in members:
            order = self._archive.read(f"{prefix}byteorder")
            require(order == b"little", "numbers in another byte order")
        parsed = parse(self._archive.read(pickles[0]))
        if hostile := hostile_names(parsed.names):
            raise DataError(
                f"{self.path}: expected a checkpoint, got a file that asks to run {hostile}; "
                "nothing of it was run: do not open it with anything else, and fetch the model "
                "again from its authors"
            )
        entries = table(parsed.value)
        entries = table(entries["state_dict"]) if "state_dict" in entries else entries
        require(len(entries) <= MAX_TENSORS, f"more than {MAX_TENSORS} entries")
        return {
            name: _place(value, prefix, members)
            for name, value in entries.items()
            if isinstance(name, str) and len(name) <= MAX_NAME and _is_tensor(value)
        }

    def _refused(self, got: str) -> DataError:
        return DataError(
            f"{self.path}: expected a checkpoint that torch.save wrote (torch 1.6 or newer), got "
            f"{got}; copy it from its source again"
        )


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is an archive, as ``torch.save`` writes them."""
    try:
        with open_regular(path, follow=True) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Made) and str(value.maker) in (*_REBUILD, _PARAMETER)


def _place(value: Made, prefix: str, members: dict[str, zipfile.ZipInfo]) -> StoredTensor:
    if str(value.maker) == _PARAMETER:
        value = value.arguments[0]
        require(_is_tensor(value) and str(value.maker) != _PARAMETER, "an odd parameter")
    storage, offset, size, stride = value.arguments[:4]
    match storage:
        case Reference(to=("storage", Name(module="torch", name=kind), str(key), _, int(count))):
            pass
        case _:
            raise NotReadable("a tensor in a storage of another format")
    dtype, member = STORAGES.get(kind), f"{prefix}data/{key}"
    require(dtype is not None, f"a storage of type {kind}")
    require(member in members, f"no storage {key}")
    require(members[member].file_size == count * dtype.itemsize, "a storage that is cut off")
    check_shape(offset, size, stride, count)
    return StoredTensor(member, dtype, count, offset, tuple(size), tuple(stride))


def _short(error: object) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= 160 else line[:157] + "..."
