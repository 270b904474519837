"""Reference of group_norm_silu: any dtype and device, twice differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor


def statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and the reciprocal deviation of each image and group, ``[N, G]``."""
    n, c, h, w = x.shape
    rows = x.reshape(n, groups, c // groups * h * w)
    mean = rows.mean(2)
    variance = (rows - mean[:, :, None]).square().mean(2)  # biased
    return mean, (variance + eps).rsqrt()


def _of_channels(of_groups: Tensor, channels: int) -> Tensor:
    """Return ``[N, C, 1, 1]``: the value of its group for every channel."""
    return of_groups.repeat_interleave(channels // of_groups.shape[1], 1)[:, :, None, None]


def _normalise(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return (x - _of_channels(mean, x.shape[1])) * _of_channels(rstd, x.shape[1])


def _affine(
    weight: Tensor, bias: Tensor, modulation: Tensor | None
) -> tuple[Tensor | float, Tensor, Tensor]:
    """Return the gain of an image, and the factor and shift of its normalised pixels."""
    factor, shift = weight[:, None, None], bias[:, None, None]
    if modulation is None:
        return 1.0, factor, shift
    scale, offset = modulation[:, :, None, None].chunk(2, 1)
    gain = 1.0 + scale
    return gain, gain * factor, gain * shift + offset


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = statistics(x, groups, eps)
    _, factor, shift = _affine(weight, bias, modulation)
    out = F.silu(_normalise(x, mean, rstd) * factor + shift)
    return out.contiguous(memory_format=torch.channels_last), mean, rstd


def group_norm_silu_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    modulation: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (n, c, height, width), groups = x.shape, mean.shape[1]
    normed = _normalise(x, mean, rstd)
    gain, factor, shift = _affine(weight, bias, modulation)
    y = normed * factor + shift
    sigmoid = torch.sigmoid(y)
    h = grad * sigmoid * (1.0 + y * (1.0 - sigmoid))  # gradient of y
    q = h * factor  # of the normalised pixels
    rows = (n, groups, c // groups * height * width)
    mean_q, mean_qx = (_of_channels(t.reshape(rows).mean(2), c) for t in (q, q * normed))
    dx = _of_channels(rstd, c) * (q - mean_q - normed * mean_qx)
    dweight, dbias = ((gain * t).sum((0, 2, 3)) for t in (h * normed, h))
    if modulation is None:
        dmodulation = x.new_empty(0)
    else:
        sum_h, sum_hx = h.sum((2, 3)), (h * normed).sum((2, 3))
        dmodulation = torch.cat([sum_hx * weight + sum_h * bias, sum_h], 1)
    return dx.contiguous(memory_format=torch.channels_last), dweight, dbias, dmodulation


def differentiable_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    modulation: Tensor | None,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the backward from the op's inputs alone, so that autograd sees the statistics."""
    return group_norm_silu_bwd(grad, x, weight, bias, modulation, *statistics(x, groups, eps))
