"""norm_act_pool in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdistill.backends.triton import refusal as supports

__all__ = ["norm_act_pool", "norm_act_pool_bwd", "supports"]

_BLOCK_C = 32  # channels of a program
_BLOCK_P = 64  # pixels, or pooling windows, of a step


@triton.jit
def _moments(x_ptr, P, C, cols, inside, BLOCK_P: tl.constexpr):
    # mean and sum of squared deviations of each channel, block by block (Chan, Golub, LeVeque 1983)
    mean = tl.zeros(cols.shape, dtype=x_ptr.dtype.element_ty)
    squares = tl.zeros(cols.shape, dtype=x_ptr.dtype.element_ty)
    for first in range(0, P, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        mask = (p < P)[:, None] & inside[None, :]
        x = tl.load(x_ptr + p[:, None] * C + cols[None, :], mask=mask, other=0.0)  # [BLOCK_P, BLOCK_C]
        count = tl.minimum(P - first, BLOCK_P).to(x.dtype)
        local = tl.sum(x, axis=0) / count
        d = tl.where(mask, x - local[None, :], 0.0)
        share = count / (first + count)
        step = local - mean
        mean += step * share
        squares += tl.sum(d * d, axis=0) + step * step * first * share
    return mean, squares


@triton.jit
def _window(j, W, C):
    # offset of the top left pixel of pooling window j
    across = W // 2
    return (2 * (j // across) * W + 2 * (j % across)) * C


@triton.jit
def _relu(y):
    return tl.where(y < 0.0, 0.0, y)  # a NaN stays


@triton.jit
def _norm_act_pool_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, mean_ptr, rstd_ptr, C, H, W, IMAGES,
    EPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # one program per image and BLOCK_C channels; IMAGES images share a row of weight and bias
    image = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    windows = (H // 2) * (W // 2)
    x_ptr += image * H * W * C
    mean, squares = _moments(x_ptr, H * W, C, cols, inside, BLOCK_P)
    rstd = 1.0 / tl.sqrt(squares / (H * W) + EPS)
    tl.store(mean_ptr + image * C + cols, mean, mask=inside)
    tl.store(rstd_ptr + image * C + cols, rstd, mask=inside)
    row = image // IMAGES * C + cols
    scale = 0.25 * tl.load(weight_ptr + row, mask=inside, other=0.0) * rstd  # a window averages four
    shift = 0.25 * tl.load(bias_ptr + row, mask=inside, other=0.0)
    for first in range(0, windows, BLOCK_P):
        j = first + tl.arange(0, BLOCK_P)
        mask = (j < windows)[:, None] & inside[None, :]
        p = x_ptr + _window(j, W, C)[:, None] + cols[None, :]
        acc = _relu((tl.load(p, mask=mask, other=0.0) - mean) * scale + shift)
        acc += _relu((tl.load(p + C, mask=mask, other=0.0) - mean) * scale + shift)
        acc += _relu((tl.load(p + W * C, mask=mask, other=0.0) - mean) * scale + shift)
        acc += _relu((tl.load(p + W * C + C, mask=mask, other=0.0) - mean) * scale + shift)
        tl.store(out_ptr + image * windows * C + j[:, None] * C + cols[None, :], acc, mask=mask)


@triton.jit
def _norm_act_pool_bwd_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, dx_ptr, partials_ptr, N, C, H, W, IMAGES,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    windows, pixels = (H // 2) * (W // 2), H * W
    x_ptr += image * pixels * C
    dx_ptr += image * pixels * C
    grad_ptr += image * windows * C
    mean = tl.load(mean_ptr + image * C + cols, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + image * C + cols, mask=inside, other=0.0)
    row = image // IMAGES * C + cols
    scale = 0.25 * tl.load(weight_ptr + row, mask=inside, other=0.0) * rstd
    shift = 0.25 * tl.load(bias_ptr + row, mask=inside, other=0.0)
    sum_h = tl.zeros((BLOCK_C,), dtype=x_ptr.dtype.element_ty)  # h: grad where the activation is positive
    sum_hd = tl.zeros((BLOCK_C,), dtype=x_ptr.dtype.element_ty)
    for first in range(0, windows, BLOCK_P):
        j = first + tl.arange(0, BLOCK_P)
        mask = (j < windows)[:, None] & inside[None, :]
        grad = tl.load(grad_ptr + j[:, None] * C + cols[None, :], mask=mask, other=0.0)
        for corner in tl.static_range(4):
            p = x_ptr + _window(j, W, C)[:, None] + cols[None, :] + (corner // 2) * W * C + (corner % 2) * C
            d = tl.load(p, mask=mask, other=0.0) - mean
            h = tl.where(d * scale + shift > 0.0, grad, 0.0)
            sum_h += tl.sum(h, axis=0)
            sum_hd += tl.sum(h * d, axis=0)
    dbias = 0.25 * sum_h
    dweight = 0.25 * sum_hd * rstd
    tl.store(partials_ptr + image * C + cols, dweight, mask=inside)
    tl.store(partials_ptr + (N + image) * C + cols, dbias, mask=inside)
    gain = -4.0 * scale / pixels
    slope = gain * rstd * dweight
    offset = gain * dbias
    # every pixel, those outside the windows too: h is zero there
    for first in range(0, pixels, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        mask = (p < pixels)[:, None] & inside[None, :]
        i, j = p // W // 2, p % W // 2
        pooled = (i < H // 2) & (j < W // 2)
        at = p[:, None] * C + cols[None, :]
        d = tl.load(x_ptr + at, mask=mask, other=0.0) - mean
        from_window = (i * (W // 2) + j)[:, None] * C + cols[None, :]
        grad = tl.load(grad_ptr + from_window, mask=mask & pooled[:, None], other=0.0)
        h = tl.where(d * scale + shift > 0.0, grad * scale, 0.0)
        tl.store(dx_ptr + at, h + (d * slope + offset), mask=mask)


def norm_act_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    out = torch.empty((n, c, h // 2, w // 2), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    mean, rstd = x.new_empty((n, c)), x.new_empty((n, c))
    if x.numel():
        _norm_act_pool_fwd_kernel[(n, triton.cdiv(c, _BLOCK_C))](
            *(x, weight, bias, out, mean, rstd, c, h, w, n // weight.shape[0]), EPS=eps, BLOCK_P=_BLOCK_P, BLOCK_C=_BLOCK_C
        )
    return out, mean, rstd


def norm_act_pool_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    dx = torch.empty((n, c, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    partials = x.new_empty((2, n, c))
    if x.numel():
        _norm_act_pool_bwd_kernel[(n, triton.cdiv(c, _BLOCK_C))](
            *(grad, x, weight, bias, mean, rstd, dx, partials, n, c, h, w, n // weight.shape[0]),
            BLOCK_P=_BLOCK_P,
            BLOCK_C=_BLOCK_C,
        )
    groups = weight.shape[0]
    dweight, dbias = partials.view(2, groups, n // groups, c).sum(2, dtype=torch.float64).to(x.dtype).unbind(0)
    return dx, dweight.clone(), dbias.clone()
