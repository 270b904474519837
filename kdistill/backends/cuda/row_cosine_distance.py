"""row_cosine_distance through csrc/cuda/row_cosine_distance.cu."""

import torch
from torch import Tensor

from kdistill.backends.arguments import rows_and_width
from kdistill.backends.cuda import launch


def row_cosine_distance(
    syn: Tensor, real: Tensor, rows: Tensor, mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    (g, p), r = rows_and_width(syn), len(rows)
    grad = torch.zeros_like(syn)  # the kernel writes rows only
    loss = syn.new_empty(syn.shape[:-1], dtype=torch.float64)
    values = syn.new_empty((g, r), dtype=torch.float64)
    mask_per_group = mask is not None and mask.ndim == 2
    tensors = (syn, real, rows, mask, loss, grad, values)
    launch("row_cosine_distance", tensors, g, p, r, mask_per_group, eps)
    return loss, grad
