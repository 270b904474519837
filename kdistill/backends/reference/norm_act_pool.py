"""Reference of norm_act_pool: any dtype and device, twice differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and the reciprocal deviation of each image and channel, ``[N, C]``."""
    mean = x.mean((2, 3))
    variance = (x - mean[:, :, None, None]).square().mean((2, 3))  # biased
    return mean, (variance + eps).rsqrt()  # [N, C] each


def per_image(rows: Tensor, images: int) -> Tensor:
    """Return ``[N, C, 1, 1]``: row g of ``[G, C]`` for the images g*N/G .. (g+1)*N/G - 1."""
    return rows.repeat_interleave(images // rows.shape[0], 0)[:, :, None, None]


def normalise(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Return ``(x - mean) * rstd`` with the statistics ``[N, C]``."""
    return (x - mean[:, :, None, None]) * rstd[:, :, None, None]


def _unpool(grad: Tensor, height: int, width: int) -> Tensor:
    # a quarter for each pixel of a window; an odd last row or column is not pooled
    above = (0.25 * grad).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return F.pad(above, (0, width % 2, 0, height % 2))


def norm_act_pool(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = statistics(x, eps)
    y = normalise(x, mean, rstd) * per_image(weight, x.shape[0]) + per_image(bias, x.shape[0])
    return F.avg_pool2d(F.relu(y), 2).contiguous(memory_format=torch.channels_last), mean, rstd


def norm_act_pool_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    (n, c, height, width), groups = x.shape, weight.shape[0]
    normed, scale = normalise(x, mean, rstd), per_image(weight, n)
    above = _unpool(grad, height, width)
    h = torch.where(normed * scale + per_image(bias, n) > 0, above, torch.zeros_like(above))
    sum_h, sum_hx = (
        h.sum((2, 3)),
        (h * normed).sum((2, 3)),
    )  # [N, C]: this image's share of dbias and dweight
    mean_h, mean_hx = (s[:, :, None, None] / (height * width) for s in (sum_h, sum_hx))
    dx = scale * rstd[:, :, None, None] * (h - mean_h - normed * mean_hx)
    dweight, dbias = (s.reshape(groups, n // groups, c).sum(1) for s in (sum_hx, sum_h))
    return dx.contiguous(memory_format=torch.channels_last), dweight, dbias


def differentiable_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the backward from the op's inputs alone, so that autograd sees the statistics."""
    return norm_act_pool_bwd(grad, x, weight, bias, *statistics(x, eps))


def _centred_tangent(
    normed: Tensor, x_dot: Tensor, rstd: Tensor, x_dot_mean: Tensor, x_dot_proj: Tensor
) -> Tensor:
    mean, proj = x_dot_mean[:, :, None, None], x_dot_proj[:, :, None, None]
    return rstd[:, :, None, None] * (x_dot - mean - normed * proj)  # the derivative of ``normed``


def norm_act_pool_tangent(
    x: Tensor,
    x_dot: Tensor,
    weight: Tensor,
    weight_dot: Tensor,
    bias: Tensor,
    bias_dot: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = x.shape[0]
    mean, rstd = statistics(x, eps)
    normed, scale = normalise(x, mean, rstd), per_image(weight, n)
    x_dot_mean = x_dot.mean((2, 3))
    x_dot_proj = ((x_dot - x_dot_mean[:, :, None, None]) * normed).mean(
        (2, 3)
    )  # normed has no mean
    normed_dot = _centred_tangent(normed, x_dot, rstd, x_dot_mean, x_dot_proj)
    y = normed * scale + per_image(bias, n)
    y_dot = normed * per_image(weight_dot, n) + normed_dot * scale + per_image(bias_dot, n)
    active = torch.where(y <= 0, torch.zeros_like(y), y_dot)  # a NaN stays
    out, out_dot = (
        F.avg_pool2d(t, 2).contiguous(memory_format=torch.channels_last)
        for t in (F.relu(y), active)
    )
    return out, out_dot, mean, rstd, x_dot_mean, x_dot_proj


def norm_act_pool_bwd_tangent(
    grad: Tensor, grad_dot: Tensor, x: Tensor, x_dot: Tensor, weight: Tensor, weight_dot: Tensor,
    bias: Tensor, mean: Tensor, rstd: Tensor, x_dot_mean: Tensor, x_dot_proj: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (n, c, height, width), groups = x.shape, weight.shape[0]
    normed, scale = normalise(x, mean, rstd), per_image(weight, n)
    normed_dot = _centred_tangent(normed, x_dot, rstd, x_dot_mean, x_dot_proj)
    positive = normed * scale + per_image(bias, n) > 0
    h, h_dot = (
        torch.where(positive, up, torch.zeros_like(up))
        for up in (_unpool(g, height, width) for g in (grad, grad_dot))
    )
    q, q_dot = scale * h, per_image(weight_dot, n) * h + scale * h_dot
    dx, dweight, dbias = norm_act_pool_bwd(grad, x, weight, bias, mean, rstd)
    rstd = rstd[:, :, None, None]
    centred = (
        q_dot
        - _mean(q_dot)
        - normed_dot * _mean(q * normed)
        - normed * _mean(q_dot * normed + q * normed_dot)
    )
    dx_dot = (
        rstd * centred - rstd * x_dot_proj[:, :, None, None] * dx
    )  # rstd_dot = -rstd^2 * x_dot_proj
    of_images = (h_dot * normed + h * normed_dot).sum((2, 3)), h_dot.sum((2, 3))  # [N, C] each
    dweight_dot, dbias_dot = (s.reshape(groups, n // groups, c).sum(1) for s in of_images)
    return (
        dx,
        dx_dot.contiguous(memory_format=torch.channels_last),
        dweight,
        dweight_dot,
        dbias,
        dbias_dot,
    )


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)
