"""What the records of a network file mean: tensors, NumPy values and modules, by a closed table.

A tensor of such a file is ``_rebuild_tensor_v2(storage, offset, size, stride, ...)``, and its
storage the bytes of a nested ``torch.save`` in the format of before 2020: five pickles (a magic
number, a version, system facts, the storage, the keys), then for each key its length and its bytes.
They are read here, whatever device they were saved from.
"""

import math
import struct
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
MAX_NAME = 200  # characters of the dotted name of a module, tensor or attribute

_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NUMPY_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_STORAGE = "torch.storage._load_from_bytes"
_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_ORDERED = ("collections.OrderedDict", "dnnlib.util.EasyDict")


class NetworkReader:
    """Reads the record of a network within limits.

    Without them a small file that names one thing many times could fill the memory, or take
    forever.

    Attributes:
        modules: Names of the classes of the modules, by dotted names; the network's own is ``""``.
        tensors: Parameters and buffers by dotted names.
        attributes: All attributes of the modules by dotted names, as they stand in the file.
        nbytes_left: Bytes of tensors that may still be read.
        records_left: Modules, tensors, their entries and values that may still be read.
    """

    def __init__(self, max_nbytes: int):
        self.modules: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.attributes: dict[str, Any] = {}
        self.nbytes_left, self.records_left = max_nbytes, MAX_RECORDS
        # by the identity of the bytes in the file, which stay alive beside the storage
        self._storages: dict[int, tuple[Any, Tensor]] = {}

    def read(self, record: Any, name: str = "", depth_left: int = MAX_DEPTH) -> None:
        """Read a module and those in it: of the original files (persistent objects), or torch's.

        Args:
            record: The record of the module.
            name: Dotted name of the module.
            depth_left: How deeply further modules may be nested in it.
        """
        self._count()
        require(depth_left >= 0, "modules nested too deeply")
        class_name, state = _class_and_state(record)
        require(type(state) is dict and type(class_name) is str, "a module without its state")
        self.modules[name] = class_name
        prefix = f"{name}." if name else ""
        self.attributes |= self._entries(state, prefix)
        tensors = self._entries(state.get("_parameters"), prefix)
        tensors |= self._entries(state.get("_buffers"), prefix)
        self.tensors |= {key: self.tensor(x) for key, x in tensors.items() if x is not None}
        for key, x in self._entries(state.get("_modules"), prefix).items():
            if x is not None:
                self.read(x, key, depth_left - 1)

    def value(self, name: str, *default: Any) -> Any:
        """Return an attribute as a number, text or (nested) list.

        Raises:
            KeyError: There is no such attribute, and no default.
        """
        return self.plain(self.attributes.get(name, *default) if default else self.attributes[name])

    def tensor(self, value: Any) -> Tensor:
        """Return a tensor or parameter."""
        self._count()
        maker, arguments = _call(value)
        if maker == "torch._utils._rebuild_parameter":
            return self.tensor(arguments[0])
        require(maker in _TENSORS and len(arguments) >= 4, f"a tensor made by {maker}")
        source, offset, size, stride = arguments[:4]
        maker, contents = _call(source)
        require(maker == _STORAGE, f"a tensor in a storage made by {maker}")
        storage = self._storage(contents[0])
        check_shape(offset, size, stride, len(storage))
        self.nbytes_left -= math.prod(size) * storage.element_size()
        require(self.nbytes_left >= 0, "tensors of more bytes than the file has")
        return strided_copy(storage, offset, size, stride)

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
        else:
            require(maker in _ARRAYS, f"a value made by {maker}")
            state = value.state
        _, shape, dtype, is_fortran, raw = state
        return self._array(raw, dtype).reshape(shape, order="F" if is_fortran else "C").tolist()

    def _count(self, records: int = 1) -> None:
        self.records_left -= records
        require(self.records_left >= 0, f"more than {MAX_RECORDS} modules, tensors and values")

    def _entries(self, value: Any, prefix: str) -> dict[str, Any]:
        """Return the entries of a table by dotted names; every entry counts."""
        entries = table(value)
        self._count(len(entries))
        sizes = [len(prefix) + len(name) for name in entries if isinstance(name, (str, bytes))]
        require(max(sizes, default=0) <= MAX_NAME, f"a name of more than {MAX_NAME} characters")
        return {prefix + str(name): x for name, x in entries.items()}

    def _storage(self, value: Any) -> Tensor:
        """Return a storage, read once however many tensors and records name its bytes."""
        written = _written(value)
        if id(written) not in self._storages:
            self._storages[id(written)] = written, read_storage(_raw(value))
        return self._storages[id(written)][1]

    def _array(self, raw: Any, dtype: Any, count: int = -1) -> np.ndarray:
        """Return an array of NumPy, whose numbers count before they are copied."""
        written = _written(raw)
        self._count(len(written) if isinstance(written, (str, bytes, bytearray)) else 0)
        return np.frombuffer(_raw(raw), _dtype(dtype), count=count)


def require(holds: Any, got: str) -> None:
    """Raise NotReadable, which says what the file has instead, unless something holds."""
    if not holds:
        raise NotReadable(got)


def table(value: Any) -> dict[Any, Any]:
    """Return the table that a record describes; None is an empty one."""
    if value is None or isinstance(value, dict):
        return value or {}
    require(_maker(value) in _ORDERED, "a table that is something else")
    return value.items


def check_shape(offset: Any, size: Any, stride: Any, count: int) -> None:
    """Refuse a tensor that a storage of ``count`` numbers does not hold."""
    numbers = (offset, *size, *stride)
    is_shape = all(isinstance(x, int) and x >= 0 for x in numbers) and len(size) == len(stride)
    require(is_shape, "a tensor of an impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    require(0 in size or last < count, "a tensor that is larger than its storage")


def strided_copy(storage: Tensor, offset: int, size: Any, stride: Any) -> Tensor:
    """Return a contiguous copy of a tensor in a storage, after ``check_shape``."""
    if 0 in size:
        return storage.new_zeros(size)
    strided = storage.as_strided(size, stride, offset)
    return strided.clone(memory_format=torch.contiguous_format)


def read_storage(data: bytes) -> Tensor:
    """Return the only storage of a nested ``torch.save`` as a one-dimensional tensor."""
    stream = BytesIO(data)
    magic, _, _, reference, keys = (parse(stream).value for _ in range(5))
    is_reference = isinstance(reference, Reference) and isinstance(reference.to, tuple)
    require(magic == LEGACY_MAGIC and is_reference, "a storage of another format")
    kind, storage_type, key, _, count, *shared = reference.to
    type_name = str(storage_type) if isinstance(storage_type, Name) else type(storage_type).__name__
    dtype = STORAGES.get(type_name.removeprefix("torch.")) if kind == "storage" else None
    require(dtype is not None, f"a storage of type {type_name}")
    is_own = isinstance(key, str) and keys == [key] and all(x is None for x in shared)
    require(is_own, "a storage that is shared")
    (length,) = struct.unpack("<q", stream.read(8))
    raw = bytearray(stream.read())
    is_whole = length == count and len(raw) == count * dtype.itemsize
    require(is_whole, "a storage that is cut off")
    return torch.frombuffer(raw, dtype=dtype) if raw else torch.zeros(0, dtype=dtype)


def _class_and_state(value: Any) -> tuple[Any, Any]:
    """Return class name and state of a module."""
    maker = _maker(value)
    require(maker is not None, "a module that is something else")
    if maker != _PERSISTENT:
        return value.maker.name, value.state
    meta = table(value.arguments[0]) if value.arguments else {}
    return meta.get("class_name"), meta.get("state")


def _call(value: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the name and the arguments of a call."""
    maker = _maker(value)
    arguments = () if maker is None else value.arguments
    require(arguments, f"a {type(value).__name__} where a tensor or a number belongs")
    return str(maker), arguments


def _maker(value: Any) -> str | None:
    """Return the name that a record was made by, if it was made by one."""
    is_named = isinstance(value, Made) and isinstance(value.maker, Name)
    return str(value.maker) if is_named else None


def _written(value: Any) -> Any:
    """Return the text or bytes in the file behind a value that may be a call around them."""
    return value.arguments[0] if isinstance(value, Made) and value.arguments else value


def _raw(value: Any) -> bytes:
    """Return bytes, which protocols below 3 write as an encoded text."""
    if _maker(value) == "_codecs.encode":
        text = _written(value)
        value = text.encode("latin1") if isinstance(text, str) else None
    require(isinstance(value, (bytes, bytearray)), "a value without its bytes")
    return bytes(value)


def _dtype(value: Any) -> np.dtype[Any]:
    """Return a dtype of plain numbers; objects and structures are refused."""
    maker, (code, *_) = _call(value)
    type_name = code if isinstance(code, str) else type(code).__name__
    require(maker == "numpy.dtype" and code in _NUMPY_TYPES, f"a NumPy type {type_name}")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
    return np.dtype((">" if order == ">" else "<") + code)
