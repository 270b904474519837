"""An accelerator made of CPU memory, for a machine without one.

Its tensors say that they are on ``emulated:0`` and refuse to meet tensors of the host, as those of
a GPU do.  The device counts what stops a GPU's stream (``waits``) and what goes to it
(``uploads``), and it records graphs as CUDA does: everything but kernels is refused while a graph
is recorded, and a replay runs the recorded kernels on the recorded addresses, without Python."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("emulated")
DEVICE = torch.device("emulated:0")
_WAITS = (  # the host needs a value, or the size of a result
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive"),
)


class OnDevice(torch.Tensor):
    """A tensor on the device; ``memory`` is where it lies."""

    memory: Tensor

    @staticmethod
    def __new__(cls, memory: Tensor) -> "OnDevice":
        layout = {
            "strides": memory.stride(),
            "storage_offset": memory.storage_offset(),
            "dtype": memory.dtype,
        }
        x = torch.Tensor._make_wrapper_subclass(cls, memory.size(), device=DEVICE, **layout)
        x.memory = memory
        return x

    def tolist(self) -> Any:
        """Return the values; torch itself refuses that to subclasses."""
        return self.to("cpu").tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the emulated device is used outside of it")


class Graph:
    """Kernels with their addresses."""

    def __init__(self, device: "Device"):
        self.device, self.kernels = device, []

    def replay(self) -> None:
        """Run the kernels again: what they read are the values that lie there now."""
        for func, args, kwargs, results in self.kernels:
            again = _tensors(func(*args, **kwargs))
            for old, new in zip(results, again, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)
        self.device.replays += 1


class _Literals(TorchFunctionMode):
    """Tensors of Python numbers: torch builds them below all modes, so the host does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnDevice):
            return torch.tensor(args[1], dtype=args[0].dtype).to(DEVICE)
        return func(*args, **kwargs)


class Device(TorchDispatchMode):
    """The device, inside its ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.uploads = self.recorded = self.replays = 0
        self.graph: Graph | None = None
        self.literals = _Literals()

    def __enter__(self) -> "Device":
        self.literals.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.literals.__exit__(*error)

    @contextmanager
    def recording(self) -> Iterator[Graph]:
        """Record the kernels of the ``with`` block; it runs them once as well."""
        self.graph = graph = Graph(self)
        try:
            yield graph
        finally:
            self.graph = None

    def record(self, function: Any, place: torch.device) -> tuple[Graph, Any]:
        """Record a call, as ``kdistill.ops.capture`` wants it."""
        with self.recording() as graph:
            outputs = function()
        self.recorded += 1
        return graph, outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = _tensors((args, tuple(kwargs.values())))
        remote = [x for x in tensors if isinstance(x, OnDevice)]
        asked = kwargs.get("device")
        wanted = DEVICE.type == torch.device(asked).type if asked is not None else bool(remote)
        self._check(func, args, kwargs, tensors, remote, wanted)
        if asked is not None and wanted:
            kwargs["device"] = torch.device("cpu")
        inner_args, inner_kwargs = (
            _each(_memory, args),
            {name: _each(_memory, x) for name, x in kwargs.items()},
        )
        outcome = func(*inner_args, **inner_kwargs)
        if not wanted or not (results := _tensors(outcome)):
            return outcome
        if self.graph is not None:
            self.graph.kernels.append((func, inner_args, inner_kwargs, results))
        known = {id(x.memory): x for x in remote}
        return _each(lambda x: known[id(x)] if id(x) in known else OnDevice(x), outcome)

    def _check(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        tensors: list[Tensor],
        remote: list[OnDevice],
        wanted: bool,
    ) -> None:
        name = func._schema.name.split("::")[1]
        local = [x for x in tensors if not isinstance(x, OnDevice)]
        if name in ("_to_copy", "copy_") and (local or not wanted):
            source = args[1] if name == "copy_" else args[0]
            crosses = (
                isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice)
                if name == "copy_"
                else bool(remote) != wanted
            )
            if crosses and isinstance(source, OnDevice):
                self._stop(f"{name} to the host")
            elif crosses:
                self._upload(
                    name,
                    kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]),
                )
            return
        masks = name in ("index", "index_put", "index_put_") and any(
            x.dtype == torch.bool for x in _tensors(args[1])
        )
        if remote and (name in _WAITS or masks):
            self._stop(name)
        if remote and any(x.ndim for x in local):
            shapes = [list(x.shape) for x in local if x.ndim]
            raise AssertionError(f"{func}: host tensors {shapes} meet tensors of the device")

    def _stop(self, what: str) -> None:
        if self.graph is not None:
            raise RuntimeError(f"{what}: operation not permitted when stream is capturing")
        self.waits[what] += 1

    def _upload(self, what: str, goes_on: bool) -> None:
        if self.graph is not None:
            raise RuntimeError(
                f"{what} from pageable memory: operation not permitted when stream is capturing"
            )
        self.uploads += 1
        if not goes_on:  # torch waits for the stream unless it is told not to
            self.waits[f"{what} to the device"] += 1


def _memory(x: Tensor) -> Tensor:
    return x.memory if isinstance(x, OnDevice) else x


def _each(function: Any, x: Any) -> Any:
    """Return ``x`` with every tensor in it replaced."""
    if isinstance(x, Tensor):
        return function(x)
    return type(x)([_each(function, part) for part in x]) if isinstance(x, list | tuple) else x


def _tensors(x: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    _each(tensors.append, x)
    return tensors
