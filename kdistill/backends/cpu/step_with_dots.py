"""step_with_dots through csrc/cpu/step_with_dots.cpp."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.cpu import new_output

supports = partial(_native.refusal, "_cpu")

_BLOCK = 4096  # kBlock of the kernel: elements behind one pair of partial sums


def step_with_dots(y: Tensor, x: Tensor, step: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    g, p = y.shape if y.ndim == 2 else (1, y.shape[0])
    if out is None:
        out = new_output(y, y.shape)
    dots = y.new_empty((*y.shape[:-1], 2), dtype=torch.float64)
    partials = y.new_empty((g, -(-p // _BLOCK), 2), dtype=torch.float64)
    run = _native.kernel("_cpu", "step_with_dots", y.dtype)
    run(
        *(
            y.data_ptr(),
            x.data_ptr(),
            step.data_ptr(),
            out.data_ptr(),
            dots.data_ptr(),
            partials.data_ptr(),
        ),
        *(g, p, step.ndim == 1, torch.get_num_threads()),
    )
    return out, dots
