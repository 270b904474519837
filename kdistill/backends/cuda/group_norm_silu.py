"""group_norm_silu through csrc/cuda/group_norm_silu.cu."""

import torch
from torch import Tensor

from kdistill.backends.arguments import empty_channels_last
from kdistill.backends.cuda import launch


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    mean = x.new_empty((n, groups))
    out, rstd = empty_channels_last(x, n, c, h, w), torch.empty_like(mean)
    tensors = (x, weight, bias, modulation, out, mean, rstd)
    launch("group_norm_silu", tensors, n, c, h * w, groups, eps)
    return out, mean, rstd


def group_norm_silu_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    modulation: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    grads = (
        empty_channels_last(x, n, c, h, w),
        torch.empty_like(weight),
        torch.empty_like(bias),
        x.new_empty(0) if modulation is None else torch.empty_like(modulation),
    )
    inputs = (grad, x, weight, bias, modulation, mean, rstd)
    tensors = (*inputs, *grads, x.new_empty((2, n, c)))
    launch("group_norm_silu_bwd", tensors, n, c, h * w, mean.shape[1])
    return grads
