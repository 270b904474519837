"""row_cosine_distance through csrc/cpu/row_cosine_distance.cpp."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.cpu import new_output

supports = partial(_native.refusal, "_cpu")


def row_cosine_distance(
    syn: Tensor, real: Tensor, rows: Tensor, mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    g, p = syn.shape if syn.ndim == 2 else (1, syn.shape[0])
    grad = new_output(syn, syn.shape)
    loss = syn.new_empty(syn.shape[:-1], dtype=torch.float64)
    values = syn.new_empty((g, len(rows)), dtype=torch.float64)
    run = _native.kernel("_cpu", "row_cosine_distance", syn.dtype)
    run(
        *(syn.data_ptr(), real.data_ptr(), rows.data_ptr(), 0 if mask is None else mask.data_ptr()),
        *(loss.data_ptr(), grad.data_ptr(), values.data_ptr()),
        *(g, p, len(rows), mask is not None and mask.ndim == 2, eps, torch.get_num_threads()),
    )
    return loss, grad
