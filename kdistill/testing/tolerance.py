"""The one tolerance rule: no worse than eager PyTorch, judged against the float64 reference.

    err(ours) <= max(2 * err(eager, same dtype), eps * sqrt(depth) * max|truth|)

Errors are max-abs.  The second term is a rounding floor: on small inputs eager's own error is one
lucky number, often zero.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kdistill.errors import KDistillError


class ToleranceError(KDistillError, AssertionError):
    """A result is worse than the rule allows."""


def to_float64(value: Any) -> Any:
    """Return ``value`` with every floating tensor in it cast to float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(to_float64(v) for v in value)
    return value


def error(got: Tensor, truth: Tensor) -> float:
    """Return the max-abs error of ``got``; infinite where it is not finite and truth is."""
    if truth.numel() == 0:
        return 0.0
    difference = (got.detach().double().cpu() - truth.detach().double().cpu()).abs()
    return math.inf if bool(torch.isnan(difference).any()) else float(difference.max())


def bound(eager: Tensor, truth: Tensor, depth: float) -> float:
    """Return the largest error that the rule allows for ``depth`` additions behind one output."""
    if truth.numel() == 0:
        return 0.0
    floor = torch.finfo(eager.dtype).eps * math.sqrt(max(depth, 1.0)) * float(truth.abs().max())
    return max(2.0 * error(eager, truth), floor)


def assert_close_enough(
    got: Tensor, eager: Tensor, truth: Tensor, depth: float, what: str = "result"
) -> None:
    """Raise ToleranceError unless ``got`` obeys the rule; shapes and dtypes must agree exactly."""
    if got.shape != truth.shape or got.dtype != eager.dtype:
        raise ToleranceError(
            f"{what}: expected {list(truth.shape)} {eager.dtype}, got {list(got.shape)} {got.dtype}"
        )
    ours, allowed = error(got, truth), bound(eager, truth, depth)
    if not ours <= allowed:
        raise ToleranceError(
            f"{what}: max-abs error {ours:.3e} exceeds {allowed:.3e} (eager "
            f"{error(eager, truth):.3e}, depth {depth:g})"
        )
