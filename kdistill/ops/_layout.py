"""What kernels rely on and cannot see: sizes, dtype, device and memory order of an op's tensors.

A kernel gets addresses and sizes, so it reads a tensor that is smaller beyond its end, and one in
another order wrongly.  Every registered op declares the layouts of its tensors as a function of its
arguments, and ``_registry`` checks them.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdistill.errors import ShapeError


class Layout(NamedTuple):
    """Sizes and memory order of one tensor; ``dtype`` None means that of the op's first tensor, which is floating."""

    sizes: tuple[int, ...]
    dtype: torch.dtype | None = None
    channels_last: bool = False


Layouts = Callable[..., tuple[Layout, ...]]


def array(*sizes: int, dtype: torch.dtype | None = None) -> Layout:
    """Return the layout of a contiguous tensor."""
    return Layout(sizes, dtype)


def maps(*sizes: int) -> Layout:
    """Return the layout of channels-last maps ``[N, C, H, W]``."""
    return Layout(sizes, channels_last=True)


def sizes_of(x: Tensor, form: str) -> tuple[int, ...]:
    """Return the sizes of ``x``; raise ShapeError unless it has as many as ``form``, such as ``"x [N, C]"``."""
    if x.ndim != form.count(",") + 1:
        raise ShapeError(f"expected {form}, got {list(x.shape)}")
    return tuple(x.shape)


def require(condition: bool, expected: str, got: Any) -> None:
    """Raise ShapeError unless a condition holds between sizes."""
    if not condition:
        raise ShapeError(f"expected {expected}, got {got}")


def checker(where: str, hint: str, layouts: Layouts) -> Callable[[tuple[Any, ...]], None]:
    """Return a function that raises ShapeError unless the arguments of an op have the layouts that it declares.

    Args:
        where: The op, for the message.
        hint: What to do instead, for the message.
        layouts: The op's parameters to one layout per tensor, in order (that of an absent one is
            ignored).
    """
    parameters = list(inspect.signature(layouts).parameters.values())
    tensors = [
        (i, p.name) for i, p in enumerate(parameters) if p.annotation in (Tensor, Tensor | None)
    ]

    def check(args: tuple[Any, ...]) -> None:
        first: Tensor = args[tensors[0][0]]
        try:
            require(first.is_floating_point(), f"{tensors[0][1]} of a floating dtype", first.dtype)
            for (position, name), layout in zip(tensors, layouts(*args), strict=True):
                if args[position] is not None:
                    _check(name, args[position], layout, first)
        except ShapeError as error:
            raise ShapeError(f"{where}: {error}; {hint}") from None

    return check


def _has_memory(x: Tensor) -> bool:
    """Return whether ``x`` has an address for kernels: torch's own wrappers (fake, functional, distributed) have none."""
    kind = type(x)
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__ or not kind.__module__.startswith(
        "torch."
    )


def _check(name: str, x: Tensor, layout: Layout, first: Tensor) -> None:
    if x.layout != torch.strided or not _has_memory(x):
        raise ShapeError(
            f"expected {name} to be a dense tensor with memory of its own, got {type(x).__name__} "
            f"({x.layout})"
        )
    dtype = layout.dtype or first.dtype
    if tuple(x.shape) != layout.sizes or x.dtype != dtype or x.device != first.device:
        raise ShapeError(
            f"expected {name} {dtype} {list(layout.sizes)} on {first.device}, got {x.dtype} "
            f"{list(x.shape)} on {x.device}"
        )
    order = torch.channels_last if layout.channels_last else torch.contiguous_format
    if x.numel() and not x.is_contiguous(memory_format=order):
        what = "in channels-last memory" if layout.channels_last else "to be contiguous"
        raise ShapeError(
            f"expected {name} {what}, got {list(x.shape)} with strides {list(x.stride())}"
        )
