"""group_norm_silu through csrc/cpu/group_norm_silu.cpp."""

import torch
from torch import Tensor

from kdistill.backends.cpu import launch, new_channels_last

_ROWS = 5  # of scratch, for what belongs to the channels of an image


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    out, mean, rstd = (
        new_channels_last(x, n, c, h, w),
        x.new_empty((n, groups)),
        x.new_empty((n, groups)),
    )
    tensors = (x, weight, bias, modulation, out, mean, rstd, x.new_empty((n, _ROWS, c)))
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
    dx, dweight, dbias, dmodulation = (
        new_channels_last(x, n, c, h, w),
        torch.empty_like(weight),
        torch.empty_like(bias),
        x.new_empty(0) if modulation is None else torch.empty_like(modulation),
    )
    inputs, outputs = (grad, x, weight, bias, modulation, mean, rstd), (dx, dweight, dbias)
    tensors = (*inputs, *outputs, dmodulation, x.new_empty((n, _ROWS, c)))
    launch("group_norm_silu_bwd", tensors, n, c, h * w, mean.shape[1])
    return dx, dweight, dbias, dmodulation
