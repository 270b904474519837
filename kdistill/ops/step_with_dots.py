"""One step along a vector, and in the same pass two inner products for the trajectory gradient.

Symbols: P parameters, G rows (students or trajectories).
Derivation and traffic: docs/ops/step_with_dots.md.
"""

from typing import cast

import torch
from torch import Tensor

from kdistill.errors import ShapeError
from kdistill.ops._layout import Signature, array, require
from kdistill.ops._registry import plain

GRAD_ORDER = 0


def _declare(y: Tensor, x: Tensor, step: Tensor, out: Tensor | None) -> Signature:
    flatten = "flatten parameters into one vector per row"
    require(y.ndim in (1, 2), "y and x [P] or [G, P]", list(y.shape), flatten)
    steps = y.shape[:-1] if step.ndim else ()
    inputs = (
        array(*y.shape, hint=flatten),
        array(*y.shape, hint=flatten),
        array(*steps, hint="pass one number, or one per row"),
        array(*y.shape, hint="pass a row of a buffer"),
    )
    return Signature(inputs)


_run = plain("step_with_dots", _declare)


def step_with_dots(
    y: Tensor, x: Tensor, step: Tensor, *, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return ``y - step * x`` and, of each row, ``(<x, y>, <x, x>)``.

    The student's update is ``step_with_dots(theta, gradient, lr)``, the adjoint's
    ``step_with_dots(lam, hvp, lr)``, whose dots are the curvature along ``lam`` and ``|H lam|^2``.

    Args:
        y: ``[P]`` or ``[G, P]``, float32 or float64.
        x: Like ``y``.
        step: ``[]``, or ``[G]`` for one step per row, dtype and device of ``y``: a tensor, so that
            nothing waits for a GPU.
        out: Where the first result goes: contiguous, like ``y``, such as a row of a buffer ``[N +
            1, P]``.  It may be ``y`` or ``x`` itself; any other overlap is refused.

    Returns:
        ``out`` (a new tensor without it), and float64 ``[2]`` or ``[G, 2]``: the products
        with ``y`` as it was before the step, summed in float64 in an order that depends on P alone.
        Not differentiable.

    Raises:
        ShapeError: A shape, dtype, device or memory layout does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: 6 flops per element; reads ``x`` and ``y`` once and writes ``out`` once.
    """
    y, x = y.contiguous(), x.contiguous()
    if out is not None:
        _refuse_overlap(out, y=y, x=x)
    stepped = cast("tuple[Tensor, Tensor]", _run(y, x, step.contiguous(), out))
    if out is not None and not out.is_inference():
        torch.autograd.graph.increment_version(out)  # a kernel wrote into it behind torch's back
    return stepped


def _refuse_overlap(out: Tensor, **inputs: Tensor) -> None:
    for name, other in inputs.items():
        apart = abs(out.data_ptr() - other.data_ptr())
        if 0 < apart < other.nbytes:
            raise ShapeError(
                f"step_with_dots: expected out to be {name} itself or apart from it, got memory "
                f"that begins {apart} bytes from that of {name} and overlaps it; pass another row "
                "of the buffer"
            )
