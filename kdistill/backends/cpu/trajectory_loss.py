"""trajectory_loss through csrc/cpu/trajectory_loss.cpp."""

import torch
from torch import Tensor

from kdistill.backends.arguments import rows_and_width
from kdistill.backends.cpu import launch, new_output

_BLOCK = 4096  # kBlock of the kernel: elements behind one pair of partial sums


def trajectory_loss(
    final: Tensor, target: Tensor, start: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    g, p = rows_and_width(final)
    grad = new_output(final, final.shape)
    loss, denominator = (final.new_empty(final.shape[:-1], dtype=torch.float64) for _ in range(2))
    partials = final.new_empty((g, -(-p // _BLOCK), 2), dtype=torch.float64)
    tensors = (final, target, start, mask, loss, grad, denominator, partials)
    launch("trajectory_loss", tensors, g, p, mask is not None and mask.ndim == 2)
    return loss, grad, denominator
