"""trajectory_loss through csrc/cpu/trajectory_loss.cpp."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.cpu import new_output

supports = partial(_native.refusal, "_cpu")

_BLOCK = 4096  # kBlock of the kernel: elements behind one pair of partial sums


def trajectory_loss(
    final: Tensor, target: Tensor, start: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    g, p = final.shape if final.ndim == 2 else (1, final.shape[0])
    grad = new_output(final, final.shape)
    loss, denominator = (final.new_empty(final.shape[:-1], dtype=torch.float64) for _ in range(2))
    partials = final.new_empty((g, -(-p // _BLOCK), 2), dtype=torch.float64)
    run = _native.kernel("_cpu", "trajectory_loss", final.dtype)
    run(
        *(
            final.data_ptr(),
            target.data_ptr(),
            start.data_ptr(),
            0 if mask is None else mask.data_ptr(),
        ),
        *(loss.data_ptr(), grad.data_ptr(), denominator.data_ptr(), partials.data_ptr()),
        *(g, p, mask is not None and mask.ndim == 2, torch.get_num_threads()),
    )
    return loss, grad, denominator
