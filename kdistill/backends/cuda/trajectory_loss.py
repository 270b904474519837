"""trajectory_loss through csrc/cuda/trajectory_loss.cu."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cuda")

_BLOCK = 4096  # kSumBlock of the kernel: elements behind one pair of partial sums


def trajectory_loss(
    final: Tensor, target: Tensor, start: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    g, p = final.shape if final.ndim == 2 else (1, final.shape[0])
    grad = torch.empty_like(final)
    loss, denominator = (final.new_empty(final.shape[:-1], dtype=torch.float64) for _ in range(2))
    partials = final.new_empty((g, -(-p // _BLOCK), 2), dtype=torch.float64)
    run = _native.kernel("_cuda", "trajectory_loss", final.dtype, final.device)
    with _native.stream_of(final) as stream:
        run(
            *(
                final.data_ptr(),
                target.data_ptr(),
                start.data_ptr(),
                0 if mask is None else mask.data_ptr(),
            ),
            *(loss.data_ptr(), grad.data_ptr(), denominator.data_ptr(), partials.data_ptr()),
            *(g, p, mask is not None and mask.ndim == 2, stream),
        )
    return loss, grad, denominator
