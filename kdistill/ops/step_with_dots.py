"""One step along a vector, and in the same pass the two inner products that the trajectory gradient asks for.

Symbols: P parameters, G rows (students or trajectories).  Derivation and traffic:
    docs/ops/step_with_dots.md.
"""

from typing import cast

import torch
from torch import Tensor

from kdistill.errors import ShapeError
from kdistill.ops._registry import check_same_dtype_and_device, plain

GRAD_ORDER = 0

_run = plain("step_with_dots")


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
        ``out`` (a new tensor if none was given), and float64 ``[2]`` or ``[G, 2]``: the products
        with ``y`` as it was before the step, summed in float64 in an order that depends on P alone.
        Not differentiable.

    Raises:
        ShapeError: A shape, dtype, device or memory layout does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: 6 flops per element; reads ``x`` and ``y`` once and writes ``out`` once.
    """
    if y.ndim not in (1, 2) or x.shape != y.shape or not y.is_floating_point():
        raise ShapeError(
            f"step_with_dots: expected y and x [P] or [G, P] of a floating dtype, got {y.dtype} "
            f"{list(y.shape)} and "
            f"{list(x.shape)}; flatten parameters into one vector per row"
        )
    if step.ndim and step.shape != y.shape[:-1]:
        raise ShapeError(
            f"step_with_dots: expected step [] or {list(y.shape[:-1])}, got {list(step.shape)}; "
            "pass one number, or one per row"
        )
    check_same_dtype_and_device("step_with_dots", y=y, x=x, step=step)
    y, x = y.contiguous(), x.contiguous()
    if out is not None:
        _check_out(out, y, x)
    found = cast("tuple[Tensor, Tensor]", _run(y, x, step.contiguous(), out))
    if out is not None and not out.is_inference():
        torch.autograd.graph.increment_version(out)  # a kernel wrote into it behind torch's back
    return found


def _check_out(out: Tensor, y: Tensor, x: Tensor) -> None:
    if out.shape != y.shape or not out.is_contiguous():
        raise ShapeError(
            f"step_with_dots: expected out {list(y.shape)} and contiguous, got {list(out.shape)} "
            f"with strides {out.stride()}; "
            "pass a row of a buffer"
        )
    check_same_dtype_and_device("step_with_dots", y=y, out=out)
    for name, other in (("y", y), ("x", x)):
        apart = abs(out.data_ptr() - other.data_ptr())
        if 0 < apart < y.nbytes:
            raise ShapeError(
                f"step_with_dots: expected out to be {name} itself or apart from it, got memory "
                f"that begins {apart} bytes from "
                f"that of {name} and overlaps it; pass another row of the buffer"
            )
