"""What the records of a network file mean: tensors, NumPy values and modules, by a closed table.

A tensor of such a file is ``_rebuild_tensor_v2(storage, offset, size, stride, ...)``, and its
storage the bytes of a nested ``torch.save`` in the format of before 2020: five pickles (a magic
number, a version, system facts, the storage, the keys), then for each key its length and its bytes.
They are read here, whatever device they were saved from.
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdistill.files.bounded_read import LEGACY_MAGIC, STORAGES
from kdistill.files.inert_pickle import Made, Name, NotReadable, Reference, parse

MAX_DEPTH = 16  # of modules in modules
# entries of modules and numbers: the largest StyleGAN-XL has about a thousand modules of thirty
MAX_RECORDS = 200_000
MAX_KEY = 200  # characters of a module's, tensor's or attribute's name

_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_ORDERED = ("collections.OrderedDict", "dnnlib.util.EasyDict")


@dataclass(eq=False)
class Module:
    """A module of the network.

    Attributes:
        class_name: Of its class.
        values: Its attributes, as they stand in the file (``plain`` reads them).
        tensors: Its own parameters and buffers.
        children: Modules in it.
    """

    class_name: str
    values: dict[str, Any]
    tensors: dict[str, Tensor]
    children: dict[str, "Module"]

    def all_tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the tensors of the module and those in it, by dotted names."""
        found = {prefix + name: x for name, x in self.tensors.items()}
        for name, child in self.children.items():
            found |= child.all_tensors(f"{prefix}{name}.")
        return found


class Reader:
    """Reads values within limits, so that a small file which names one thing many times cannot fill memory or time.

    Attributes:
        budget: Tensor bytes that may still be read.
        records: Modules, tensors, their entries and values that may still be read.
    """

    def __init__(self, budget: int):
        self.budget, self.records = budget, MAX_RECORDS
        self._storages: dict[
            int, tuple[Any, Tensor]
        ] = {}  # by the identity of their bytes, which stay alive beside them

    def _count(self, records: int = 1) -> None:
        self.records -= records
        if self.records < 0:
            raise NotReadable(f"more than {MAX_RECORDS} modules, tensors and values")

    def _entries(self, value: Any) -> dict[str, Any]:
        """Return a table with names for keys; every entry counts."""
        entries = _table(value)
        self._count(len(entries))
        if any(isinstance(name, (str, bytes)) and len(name) > MAX_KEY for name in entries):
            raise NotReadable(f"a name of more than {MAX_KEY} characters")
        return {str(name): x for name, x in entries.items()}

    def module(self, value: Any, depth: int = 0) -> Module:
        """Return a module of the original network files (a persistent object), or one of torch's own."""
        self._count()
        if depth > MAX_DEPTH:
            raise NotReadable("modules nested too deeply")
        class_name, state = _described(value)
        if not isinstance(state, dict) or not isinstance(class_name, str):
            raise NotReadable("a module without its state")
        kept = {**self._entries(state.get("_parameters")), **self._entries(state.get("_buffers"))}
        return Module(
            class_name,
            {name: x for name, x in self._entries(state).items() if not name.startswith("_")},
            {name: self.tensor(x) for name, x in kept.items() if x is not None},
            {
                name: self.module(x, depth + 1)
                for name, x in self._entries(state.get("_modules")).items()
                if x is not None
            },
        )

    def tensor(self, value: Any) -> Tensor:
        """Return a tensor or parameter."""
        self._count()
        maker, arguments = _call(value)
        if maker == "torch._utils._rebuild_parameter":
            return self.tensor(arguments[0])
        if (
            maker not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
            or len(arguments) < 4
        ):
            raise NotReadable(f"a tensor made by {maker}")
        source, offset, size, stride = arguments[:4]
        maker, contents = _call(source)
        if maker != "torch.storage._load_from_bytes":
            raise NotReadable(f"a tensor in a storage made by {maker}")
        storage = self._storage(contents[0])
        numbers = (offset, *size, *stride)
        if not all(isinstance(x, int) and x >= 0 for x in numbers) or len(size) != len(stride):
            raise NotReadable("a tensor of an impossible shape")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(storage):
            raise NotReadable("a tensor that is larger than its storage")
        count = 1
        for n in size:
            count *= n
        self.budget -= count * storage.element_size()
        if self.budget < 0:
            raise NotReadable("tensors of more bytes than the file has")
        return storage.new_zeros(size) if 0 in size else storage.as_strided(size, stride, offset).clone(
            memory_format=torch.contiguous_format
        )  # fmt: skip

    def _storage(self, contents: Any) -> Tensor:
        """Return a storage, read once however many tensors and records name its bytes."""
        written = (
            contents.arguments[0] if isinstance(contents, Made) and contents.arguments else contents
        )
        if id(written) not in self._storages:
            self._storages[id(written)] = written, _storage(_raw(contents))
        return self._storages[id(written)][1]

    def plain(self, value: Any) -> Any:
        """Return a number, text or (nested) list of them; NumPy values become those."""
        self._count()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return [self.plain(x) for x in value]
        maker, arguments = _call(value)
        if maker in _SCALARS:
            return np.frombuffer(self._numbers(arguments[1]), _dtype(arguments[0]), count=1)[
                0
            ].item()
        if maker == "dill._dill._create_array":
            _, _, state, *_ = arguments
        elif maker in _ARRAYS:
            state = value.state
        else:
            raise NotReadable(f"a value made by {maker}")
        _, shape, dtype, is_fortran, raw = state
        array = np.frombuffer(self._numbers(raw), _dtype(dtype)).reshape(
            shape, order="F" if is_fortran else "C"
        )
        return array.tolist()

    def _numbers(self, value: Any) -> bytes:
        """Return the bytes of NumPy values, of which attributes have few; they count before they are copied."""
        written = value.arguments[0] if isinstance(value, Made) and value.arguments else value
        self._count(len(written) if isinstance(written, (str, bytes, bytearray)) else 0)
        return _raw(value)


def _described(value: Any) -> tuple[Any, Any]:
    """Return class name and state of a module."""
    if not isinstance(value, Made) or not isinstance(value.maker, Name):
        raise NotReadable("a module that is something else")
    if str(value.maker) != _PERSISTENT:
        return value.maker.name, value.state
    meta = _table(value.arguments[0]) if value.arguments else {}
    return meta.get("class_name"), meta.get("state")


def _table(value: Any) -> dict[Any, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    if isinstance(value, Made) and isinstance(value.maker, Name) and str(value.maker) in _ORDERED:
        return value.items
    raise NotReadable("a table that is something else")


table = _table


def _call(value: Any) -> tuple[str, tuple[Any, ...]]:
    if not isinstance(value, Made) or not isinstance(value.maker, Name) or not value.arguments:
        raise NotReadable(f"a {type(value).__name__} where a tensor or a number belongs")
    return str(value.maker), value.arguments


def _raw(value: Any) -> bytes:
    if (
        isinstance(value, Made)
        and value.maker == Name("_codecs", "encode")
        and isinstance(value.arguments[0], str)
    ):
        value = value.arguments[0].encode("latin1")  # how protocols below 3 write bytes
    if not isinstance(value, (bytes, bytearray)):
        raise NotReadable("a value without its bytes")
    return bytes(value)


def _dtype(value: Any) -> np.dtype[Any]:
    """Return a dtype of plain numbers; objects and structures are refused."""
    maker, arguments = _call(value)
    code = arguments[0]
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
    if maker != "numpy.dtype" or code not in (
        "b1",
        "i1",
        "i2",
        "i4",
        "i8",
        "u1",
        "u2",
        "u4",
        "u8",
        "f2",
        "f4",
        "f8",
    ):
        raise NotReadable(f"a NumPy type {code if isinstance(code, str) else type(code).__name__}")
    return np.dtype((">" if order == ">" else "<") + code)


def _storage(data: bytes) -> Tensor:
    """Return the only storage of a nested ``torch.save`` as a one-dimensional tensor."""
    stream = BytesIO(data)
    magic = parse(stream).value
    parse(stream), parse(stream)
    reference, keys = parse(stream).value, parse(stream).value
    if (
        magic != LEGACY_MAGIC
        or not isinstance(reference, Reference)
        or not isinstance(reference.to, tuple)
    ):
        raise NotReadable("a storage of another format")
    kind, storage_type, key, _, count, *view = reference.to
    dtype = (
        STORAGES.get(storage_type.name)
        if isinstance(storage_type, Name) and storage_type.module == "torch"
        else None
    )
    if kind != "storage" or dtype is None:
        raise NotReadable(
            "a storage of type "
            f"{storage_type if isinstance(storage_type, Name) else type(storage_type).__name__}"
        )
    if not isinstance(key, str) or keys != [key] or any(x is not None for x in view):
        raise NotReadable("a storage that is shared")
    (length,) = struct.unpack("<q", stream.read(8))
    raw = bytearray(stream.read())
    if length != count or len(raw) != count * dtype.itemsize:
        raise NotReadable("a storage that is cut off")
    return torch.frombuffer(raw, dtype=dtype) if raw else torch.zeros(0, dtype=dtype)
