"""row_cosine_distance through csrc/cuda/row_cosine_distance.cu."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cuda")


def row_cosine_distance(
    syn: Tensor, real: Tensor, rows: Tensor, mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    g, p = syn.shape if syn.ndim == 2 else (1, syn.shape[0])
    grad = torch.zeros_like(syn)  # the kernel writes rows only
    loss = syn.new_empty(syn.shape[:-1], dtype=torch.float64)
    values = syn.new_empty((g, len(rows)), dtype=torch.float64)
    run = _native.kernel("_cuda", "row_cosine_distance", syn.dtype, syn.device)
    with _native.stream_of(syn) as stream:
        run(
            *(
                syn.data_ptr(),
                real.data_ptr(),
                rows.data_ptr(),
                0 if mask is None else mask.data_ptr(),
            ),
            *(loss.data_ptr(), grad.data_ptr(), values.data_ptr()),
            *(g, p, len(rows), mask is not None and mask.ndim == 2, eps, stream),
        )
    return loss, grad
