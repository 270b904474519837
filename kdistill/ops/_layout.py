"""What kernels rely on and cannot see: sizes, dtype, device and memory order of an op's tensors.

A kernel gets addresses and sizes, so it reads a tensor that is smaller beyond its end, and one in
another order wrongly.  Every op declares the layouts of its tensors and results as a function of
its arguments; ``_registry`` checks the tensors and derives the results' shapes for tracing.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from kdistill.backends.arguments import Activation
from kdistill.errors import ConfigError, KDistillError, NotDifferentiableError, ShapeError


class Layout(NamedTuple):
    """What an op expects of one tensor, or makes.

    Attributes:
        sizes: Its shape.
        dtype: None for that of the op's first tensor, which is floating.
        order: Its memory order; None for any.
        hint: What to do about another shape; empty for the op's own hint.
    """

    sizes: tuple[int, ...]
    dtype: torch.dtype | None = None
    order: torch.memory_format | None = torch.contiguous_format
    hint: str = ""

    def empty(self, like: Tensor) -> Tensor:
        """Return memory of this layout with the dtype and device of ``like``."""
        order = self.order or torch.contiguous_format
        dtype = self.dtype or like.dtype
        return torch.empty(self.sizes, dtype=dtype, device=like.device, memory_format=order)


class Signature(NamedTuple):
    """What an op takes and makes.

    Attributes:
        inputs: One layout per tensor parameter, in order; that of an absent tensor is ignored.
        outputs: One layout per result of a registered op.
    """

    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...] = ()


Declaration = Callable[..., Signature]

_SCHEMA_TYPES: dict[Any, str] = {
    **{Tensor: "Tensor", Tensor | None: "Tensor?", list[int]: "int[]"},
    **{int: "int", float: "float", bool: "bool"},
}


def array(*sizes: int, dtype: torch.dtype | None = None, hint: str = "") -> Layout:
    """Return the layout of a contiguous tensor."""
    return Layout(sizes, dtype, hint=hint)


def feature_maps(*sizes: int, hint: str = "") -> Layout:
    """Return the layout of channels-last feature maps ``[N, C, H, W]``."""
    return Layout(sizes, order=torch.channels_last, hint=hint)


def mask_of(vectors: Tensor, mask: Tensor | None) -> Layout:
    """Return the layout of a mask ``[P]`` or ``[G, P]`` for vectors ``[P]`` or ``[G, P]``."""
    shared = mask is not None and mask.ndim == 1
    sizes = vectors.shape[-1:] if shared else vectors.shape
    return array(*sizes, hint="pass one number, 0 or 1, per parameter")


def noise_of(result: Layout, noise: Tensor | None) -> Layout:
    """Return the layout of noise ``[1, h, w]`` or ``[N, h, w]`` for a result ``[N, K, h, w]``."""
    n, _, *size = result.sizes
    rows = 1 if noise is None else sizes_of(noise, "noise [M, h, w]")[0]
    hint = "draw it for the result"
    require(rows in (1, n), f"noise [1, h, w] or [{n}, h, w]", f"{rows} rows", hint)
    return array(rows, *size, hint=hint)


def sizes_of(x: Tensor, form: str, hint: str = "add the dimensions that miss") -> tuple[int, ...]:
    """Return the sizes of ``x``; raise unless it has those of ``form``, such as ``"x [N, C]"``."""
    require(x.ndim == form.partition("]")[0].count(",") + 1, form, list(x.shape), hint)
    return tuple(x.shape)


def require(
    condition: bool, expected: str, got: Any, hint: str, error: type[KDistillError] = ShapeError
) -> None:
    """Raise an error, ``<expected>, <got>; <hint>``, unless a condition holds."""
    if not condition:
        raise error(f"expected {expected}, got {got}; {hint}")


def require_activation(slope: float, gain: float, limit: float) -> None:
    """Raise ConfigError unless the numbers of an activation are in their ranges."""
    require(
        0.0 <= slope <= 1.0 and 0.0 < gain < math.inf and limit > 0.0,
        "slope in 0 to 1, gain > 0 and clamp > 0 or None",
        f"{slope}, {gain} and {limit}",
        "change the sign of the input",
        ConfigError,
    )


def activation(slope: float, gain: float, clamp: float | None) -> Activation:
    """Return the numbers of an activation as backends take them."""
    return Activation(float(slope), float(gain), math.inf if clamp is None else float(clamp))


def require_labels(where: str, name: str, labels: Tensor, num_classes: int) -> None:
    """Raise ShapeError if a label on the CPU is outside ``0..num_classes-1``.

    Elsewhere the values are not read, which would wait for the device, nor under torch.compile.
    """
    readable = labels.is_cpu and labels.dtype == torch.int64
    if readable and labels.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ShapeError(
                f"{where}: expected {name} in 0..{num_classes - 1}, got {low}..{high}; pass the "
                "right number of classes"
            )


def require_constant(where: str, **tensors: Tensor | None) -> None:
    """Raise NotDifferentiableError if a tensor that an op takes for a constant requires grad."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise NotDifferentiableError(
                f"{where}: expected constant {name}, got {name} that require grad; pass "
                f"{name}.detach()"
            )


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` in channels-last memory; other than four dimensions are left to the checks."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return the tensors in contiguous memory; absent ones stay absent."""
    return [None if t is None else t.contiguous() for t in tensors]


def records_graph(*tensors: Tensor | None) -> bool:
    """Say whether autograd records what is done with the tensors."""
    # lists, here and in `contiguous`: a generator costs a microsecond of every call
    wanted = [t is not None and t.requires_grad for t in tensors] if torch.is_grad_enabled() else []
    return any(wanted)


class Declared:
    """The declared signature of an op, and what follows from it.

    Args:
        where: The op, for messages.
        hint: What to do about a tensor in another order, for messages.
        declare: The op's parameters to its signature.  A parameter that is a NamedTuple stands for
            its fields, one after the other.
    """

    def __init__(self, where: str, hint: str, declare: Declaration):
        self.where, self.hint, self._declare = where, hint, declare
        kinds = get_type_hints(declare)
        fields: list[tuple[str, Any]] = []
        self._group: tuple[int, int, Any] | None = None  # first field, the one after the last, type
        for name in inspect.signature(declare).parameters:
            grouped = getattr(kinds[name], "_fields", None)
            if grouped:
                self._group = len(fields), len(fields) + len(grouped), kinds[name]
            fields += get_type_hints(kinds[name]).items() if grouped else [(name, kinds[name])]
        self.schema = ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in fields)
        self._tensors = [(i, n) for i, (n, k) in enumerate(fields) if k in (Tensor, Tensor | None)]
        self._optional = {name for name, kind in fields if kind == Tensor | None}

    def grouped(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
        """Return ``function``, of the parameters of the declaration, as one of plain fields.

        The fields that the declaration groups keep the values that they have in ``args``.
        """
        if self._group is None:
            return function
        start, stop, kind = self._group
        values = kind(*args[start:stop])
        return lambda *fields: function(*fields[:start], values, *fields[stop:])

    def check(self, args: tuple[Any, ...]) -> None:
        """Raise an error that names the op unless the arguments fit what it declares."""
        position, name = self._tensors[0]
        first: Tensor = args[position]
        with _naming(self.where):
            for i, tensor in self._tensors:
                if args[i] is None:
                    require(tensor in self._optional, f"a tensor {tensor}", "none", "pass it")
            floating = first.is_floating_point()
            require(
                floating, f"{name} of a floating dtype", first.dtype, "convert it with .float()"
            )
            inputs = self.grouped(self._declare, args)(*args).inputs
            for (position, name), layout in zip(self._tensors, inputs, strict=True):
                if args[position] is not None:
                    self._check(name, args[position], layout, first)

    def empty(self, args: tuple[Any, ...]) -> Tensor | tuple[Tensor, ...]:
        """Return memory for the results."""
        with _naming(self.where):
            outputs = self.grouped(self._declare, args)(*args).outputs
        results = tuple(layout.empty(args[self._tensors[0][0]]) for layout in outputs)
        return results if len(results) > 1 else results[0]

    def _check(self, name: str, x: Tensor, layout: Layout, first: Tensor) -> None:
        require(
            x.layout == torch.strided and _has_memory(x),
            f"{name} to be a dense tensor with memory of its own",
            f"{type(x).__name__} ({x.layout})",
            self.hint,
        )
        dtype, same = layout.dtype or first.dtype, tuple(x.shape) == layout.sizes
        convert = (
            "move or convert it" if layout.dtype else f"convert with .to({self._tensors[0][1]})"
        )
        require(
            same and x.dtype == dtype and x.device == first.device,
            f"{name} {dtype} {list(layout.sizes)} on {first.device}",
            f"{x.dtype} {list(x.shape)} on {x.device}",
            convert if same else layout.hint or self.hint,
        )
        order = "in channels-last memory" if layout.order == torch.channels_last else "contiguous"
        require(
            not layout.order or not x.numel() or x.is_contiguous(memory_format=layout.order),
            f"{name} {order}",
            f"{list(x.shape)} with strides {list(x.stride())}",
            self.hint,
        )


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put the name of the op before the message of an error of its arguments."""
    try:
        yield
    except (ShapeError, ConfigError) as error:
        raise type(error)(f"{where}: {error}") from None


def _has_memory(x: Tensor) -> bool:
    """Return whether kernels can have the address of ``x``: torch's own wrappers have none."""
    kind = type(x)
    plain = kind.__torch_dispatch__ is Tensor.__torch_dispatch__
    return plain or not kind.__module__.startswith("torch.")
