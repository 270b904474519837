"""What the records of a network file mean: tensors, NumPy values and modules, by a closed table.

A tensor of such a file is ``_rebuild_tensor_v2(storage, offset, size, stride, ...)``, and its
storage the bytes of a nested ``torch.save`` in the format of before 2020: five pickles (a magic
number, a version, system facts, the storage, the keys), then for each key its length and its bytes.
They are read here, whatever device they were saved from.
"""

import math
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdistill.files.bounded_read import LEGACY_MAGIC, STORAGES
from kdistill.files.inert_pickle import Made, Name, NotReadable, Reference, parse

MAX_DEPTH = 16  # modules nested in modules
# entries of modules and numbers: the largest StyleGAN-XL has about a thousand modules of thirty
MAX_RECORDS = 200_000
MAX_KEY = 200  # characters of a module's, tensor's or attribute's name

_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NUMPY_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_ORDERED = ("collections.OrderedDict", "dnnlib.util.EasyDict")


@dataclass(eq=False)
class Module:
    """A module of the network.

    Attributes:
        class_name: Name of its class.
        values: Its attributes as they stand in the file; ``Reader.plain`` reads them.
        tensors: Its own parameters and buffers.
        children: The modules in it.
    """

    class_name: str
    values: dict[str, Any]
    tensors: dict[str, Tensor]
    children: dict[str, "Module"]

    def all_tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the tensors of the module and of those in it, by dotted names."""
        tensors = {prefix + name: x for name, x in self.tensors.items()}
        for name, child in self.children.items():
            tensors |= child.all_tensors(f"{prefix}{name}.")
        return tensors


class Reader:
    """Reads records within limits.

    Without them a small file that names one thing many times could fill the memory, or take
    forever.

    Attributes:
        nbytes_left: Bytes of tensors that may still be read.
        records_left: Modules, tensors, their entries and values that may still be read.
    """

    def __init__(self, max_nbytes: int):
        self.nbytes_left, self.records_left = max_nbytes, MAX_RECORDS
        # by the identity of the bytes in the file, which stay alive beside the storage
        self._storages: dict[int, tuple[Any, Tensor]] = {}

    def module(self, value: Any, depth: int = 0) -> Module:
        """Return a module of the original network files (a persistent object), or one of torch's own."""
        self._count()
        if depth > MAX_DEPTH:
            raise NotReadable("modules nested too deeply")
        class_name, state = _class_and_state(value)
        if not isinstance(state, dict) or not isinstance(class_name, str):
            raise NotReadable("a module without its state")
        tensors = self._entries(state.get("_parameters")) | self._entries(state.get("_buffers"))
        attributes, children = self._entries(state), self._entries(state.get("_modules"))
        return Module(
            class_name,
            {name: x for name, x in attributes.items() if not name.startswith("_")},
            {name: self.tensor(x) for name, x in tensors.items() if x is not None},
            {name: self.module(x, depth + 1) for name, x in children.items() if x is not None},
        )

    def tensor(self, value: Any) -> Tensor:
        """Return a tensor or parameter."""
        self._count()
        maker, arguments = _call(value)
        if maker == "torch._utils._rebuild_parameter":
            return self.tensor(arguments[0])
        if maker not in _TENSORS or len(arguments) < 4:
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
        self.nbytes_left -= math.prod(size) * storage.element_size()
        if self.nbytes_left < 0:
            raise NotReadable("tensors of more bytes than the file has")
        if 0 in size:
            return storage.new_zeros(size)
        strided = storage.as_strided(size, stride, offset)
        return strided.clone(memory_format=torch.contiguous_format)

    def plain(self, value: Any) -> Any:
        """Return a number, text or (nested) list of them; NumPy values become those."""
        self._count()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return [self.plain(x) for x in value]
        maker, arguments = _call(value)
        if maker in _SCALARS:
            return self._array(arguments[1], arguments[0], count=1)[0].item()
        if maker == "dill._dill._create_array":
            _, _, state, *_ = arguments
        elif maker in _ARRAYS:
            state = value.state
        else:
            raise NotReadable(f"a value made by {maker}")
        _, shape, dtype, is_fortran, raw = state
        return self._array(raw, dtype).reshape(shape, order="F" if is_fortran else "C").tolist()

    def _count(self, records: int = 1) -> None:
        self.records_left -= records
        if self.records_left < 0:
            raise NotReadable(f"more than {MAX_RECORDS} modules, tensors and values")

    def _entries(self, value: Any) -> dict[str, Any]:
        """Return a table whose keys are names; every entry counts."""
        entries = table(value)
        self._count(len(entries))
        if any(isinstance(name, (str, bytes)) and len(name) > MAX_KEY for name in entries):
            raise NotReadable(f"a name of more than {MAX_KEY} characters")
        return {str(name): x for name, x in entries.items()}

    def _storage(self, value: Any) -> Tensor:
        """Return a storage, read once however many tensors and records name its bytes."""
        written = _written(value)
        if id(written) not in self._storages:
            self._storages[id(written)] = written, read_storage(_raw(value))
        return self._storages[id(written)][1]

    def _array(self, raw: Any, dtype: Any, count: int = -1) -> np.ndarray:
        """Return NumPy's numbers, of which attributes have few; they count before they are copied."""
        written = _written(raw)
        self._count(len(written) if isinstance(written, (str, bytes, bytearray)) else 0)
        return np.frombuffer(_raw(raw), _dtype(dtype), count=count)


def table(value: Any) -> dict[Any, Any]:
    """Return the table that a record describes; None is an empty one."""
    if value is None or isinstance(value, dict):
        return value or {}
    if isinstance(value, Made) and isinstance(value.maker, Name) and str(value.maker) in _ORDERED:
        return value.items
    raise NotReadable("a table that is something else")


def read_storage(data: bytes) -> Tensor:
    """Return the only storage of a nested ``torch.save`` as a one-dimensional tensor."""
    stream = BytesIO(data)
    magic, _, _, reference, keys = (parse(stream).value for _ in range(5))
    is_reference = isinstance(reference, Reference) and isinstance(reference.to, tuple)
    if magic != LEGACY_MAGIC or not is_reference:
        raise NotReadable("a storage of another format")
    kind, storage_type, key, _, count, *shared = reference.to
    is_name = isinstance(storage_type, Name)
    known = is_name and storage_type.module == "torch" and kind == "storage"
    dtype = STORAGES.get(storage_type.name) if known else None
    if dtype is None:
        got = storage_type if is_name else type(storage_type).__name__
        raise NotReadable(f"a storage of type {got}")
    if not isinstance(key, str) or keys != [key] or any(x is not None for x in shared):
        raise NotReadable("a storage that is shared")
    (length,) = struct.unpack("<q", stream.read(8))
    raw = bytearray(stream.read())
    if length != count or len(raw) != count * dtype.itemsize:
        raise NotReadable("a storage that is cut off")
    return torch.frombuffer(raw, dtype=dtype) if raw else torch.zeros(0, dtype=dtype)


def _class_and_state(value: Any) -> tuple[Any, Any]:
    """Return class name and state of a module."""
    if not isinstance(value, Made) or not isinstance(value.maker, Name):
        raise NotReadable("a module that is something else")
    if str(value.maker) != _PERSISTENT:
        return value.maker.name, value.state
    meta = table(value.arguments[0]) if value.arguments else {}
    return meta.get("class_name"), meta.get("state")


def _call(value: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the name and the arguments of a call."""
    if not isinstance(value, Made) or not isinstance(value.maker, Name) or not value.arguments:
        raise NotReadable(f"a {type(value).__name__} where a tensor or a number belongs")
    return str(value.maker), value.arguments


def _written(value: Any) -> Any:
    """Return the text or bytes in the file behind a value that may be a call around them."""
    return value.arguments[0] if isinstance(value, Made) and value.arguments else value


def _raw(value: Any) -> bytes:
    """Return bytes, which protocols below 3 write as an encoded text."""
    if isinstance(value, Made) and value.maker == Name("_codecs", "encode"):
        text = _written(value)
        value = text.encode("latin1") if isinstance(text, str) else None
    if not isinstance(value, (bytes, bytearray)):
        raise NotReadable("a value without its bytes")
    return bytes(value)


def _dtype(value: Any) -> np.dtype[Any]:
    """Return a dtype of plain numbers; objects and structures are refused."""
    maker, arguments = _call(value)
    code = arguments[0]
    if maker != "numpy.dtype" or code not in _NUMPY_TYPES:
        raise NotReadable(f"a NumPy type {code if isinstance(code, str) else type(code).__name__}")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
    return np.dtype((">" if order == ">" else "<") + code)
