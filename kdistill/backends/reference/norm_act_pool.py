"""Reference of norm_act_pool: any dtype and device, twice differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    mean = x.mean((2, 3))
    variance = (x - mean[:, :, None, None]).square().mean((2, 3))  # biased
    return mean, (variance + eps).rsqrt()  # [N, C] each


def _per_image(rows: Tensor, images: int) -> Tensor:
    # row g of [G, C] belongs to images g*N/G .. (g+1)*N/G - 1
    return rows.repeat_interleave(images // rows.shape[0], 0)[:, :, None, None]  # [N, C, 1, 1]


def _normalise(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return (x - mean[:, :, None, None]) * rstd[:, :, None, None]


def norm_act_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = _statistics(x, eps)
    y = _normalise(x, mean, rstd) * _per_image(weight, x.shape[0]) + _per_image(bias, x.shape[0])
    return F.avg_pool2d(F.relu(y), 2).contiguous(memory_format=torch.channels_last), mean, rstd


def norm_act_pool_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    (n, c, height, width), groups = x.shape, weight.shape[0]
    normed, scale = _normalise(x, mean, rstd), _per_image(weight, n)
    above = (0.25 * grad).repeat_interleave(2, 2).repeat_interleave(2, 3)
    above = F.pad(above, (0, width % 2, 0, height % 2))  # an odd last row or column is not pooled
    h = torch.where(normed * scale + _per_image(bias, n) > 0, above, torch.zeros_like(above))
    sum_h, sum_hx = h.sum((2, 3)), (h * normed).sum((2, 3))  # [N, C]: this image's share of dbias and dweight
    mean_h, mean_hx = (s[:, :, None, None] / (height * width) for s in (sum_h, sum_hx))
    dx = scale * rstd[:, :, None, None] * (h - mean_h - normed * mean_hx)
    dweight, dbias = (s.reshape(groups, n // groups, c).sum(1) for s in (sum_hx, sum_h))
    return dx.contiguous(memory_format=torch.channels_last), dweight, dbias


def differentiable_bwd(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the backward as a function of the op's inputs alone, so that autograd sees the statistics depend on ``x``."""
    return norm_act_pool_bwd(grad, x, weight, bias, *_statistics(x, eps))
