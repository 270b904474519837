"""group_norm_silu in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdistill.backends.arguments import empty_channels_last

_ELEMENTS = 1024  # of a block of pixels and the channels of a group
_LEAST_PIXELS = 16


@triton.jit
def _affine(weight, bias, modulation_ptr, image, k, inside, C):
    # y = (1 + a) * (xhat * weight + bias) + b, as gain, factor and shift of xhat
    if modulation_ptr is None:
        gain = tl.full(weight.shape, 1.0, weight.dtype)
        shift = bias
    else:
        row = modulation_ptr + image * 2 * C
        gain = 1.0 + tl.load(row + k, mask=inside, other=0.0)
        shift = gain * bias + tl.load(row + C + k, mask=inside, other=0.0)
    return gain, gain * weight, shift


@triton.jit
def _sigmoid(y):
    e = tl.exp(-tl.abs(y))  # a NaN stays
    return tl.where(y < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def _group_norm_silu_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, modulation_ptr, out_ptr, mean_ptr, rstd_ptr, C, PIXELS, WIDTH,
    EPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # one program per image and group, which reads x a second and a third time from the cache
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    moment = image * tl.num_programs(1) + group
    inside = tl.arange(0, BLOCK_C) < WIDTH
    k = group * WIDTH + tl.arange(0, BLOCK_C)
    x_ptr += image * PIXELS * C
    out_ptr += image * PIXELS * C
    dtype = x_ptr.dtype.element_ty
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=dtype)
    for start in range(0, PIXELS, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < PIXELS)[:, None] & inside[None, :]
        total += tl.load(x_ptr + p[:, None] * C + k[None, :], mask=mask, other=0.0)
    count = tl.full((), 1.0, dtype) * PIXELS * WIDTH
    mean = tl.sum(tl.sum(total, axis=0), axis=0) / count
    squares = tl.zeros((BLOCK_P, BLOCK_C), dtype=dtype)
    for start in range(0, PIXELS, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < PIXELS)[:, None] & inside[None, :]
        x = tl.load(x_ptr + p[:, None] * C + k[None, :], mask=mask, other=0.0)
        d = tl.where(mask, x - mean, 0.0)
        squares += d * d
    rstd = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, axis=0), axis=0) / count + EPS)
    tl.store(mean_ptr + moment, mean)
    tl.store(rstd_ptr + moment, rstd)
    weight = tl.load(weight_ptr + k, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + k, mask=inside, other=0.0)
    _, factor, shift = _affine(weight, bias, modulation_ptr, image, k, inside, C)
    for start in range(0, PIXELS, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < PIXELS)[:, None] & inside[None, :]
        at = p[:, None] * C + k[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0)
        y = (x - mean) * rstd * factor[None, :] + shift[None, :]
        tl.store(out_ptr + at, y * _sigmoid(y), mask=mask)


@triton.jit
def _group_norm_silu_bwd_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, modulation_ptr, mean_ptr, rstd_ptr, dx_ptr,
    dmodulation_ptr, partials_ptr, N, C, PIXELS, WIDTH, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    # one program per image and group; the image's share of dweight and dbias goes to partials
    # [2, N, C]
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    moment = image * tl.num_programs(1) + group
    inside = tl.arange(0, BLOCK_C) < WIDTH
    k = group * WIDTH + tl.arange(0, BLOCK_C)
    first = image * PIXELS * C
    dtype = x_ptr.dtype.element_ty
    mean, rstd = tl.load(mean_ptr + moment), tl.load(rstd_ptr + moment)
    weight = tl.load(weight_ptr + k, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + k, mask=inside, other=0.0)
    gain, factor, shift = _affine(weight, bias, modulation_ptr, image, k, inside, C)
    sums_h = tl.zeros((BLOCK_P, BLOCK_C), dtype=dtype)
    sums_hx = tl.zeros((BLOCK_P, BLOCK_C), dtype=dtype)
    for start in range(0, PIXELS, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < PIXELS)[:, None] & inside[None, :]
        at = first + p[:, None] * C + k[None, :]
        normed = (tl.load(x_ptr + at, mask=mask, other=0.0) - mean) * rstd
        y = normed * factor[None, :] + shift[None, :]
        s = _sigmoid(y)
        h = tl.load(grad_ptr + at, mask=mask, other=0.0) * (s * (1.0 + y * (1.0 - s)))
        sums_h += h
        sums_hx += h * normed
    sum_h, sum_hx = tl.sum(sums_h, axis=0), tl.sum(sums_hx, axis=0)
    tl.store(partials_ptr + image * C + k, gain * sum_hx, mask=inside)
    tl.store(partials_ptr + (N + image) * C + k, gain * sum_h, mask=inside)
    if modulation_ptr is not None:
        dmodulation_ptr += image * 2 * C
        tl.store(dmodulation_ptr + k, sum_hx * weight + sum_h * bias, mask=inside)
        tl.store(dmodulation_ptr + C + k, sum_h, mask=inside)
    count = tl.full((), 1.0, dtype) * PIXELS * WIDTH
    mean_q = tl.sum(factor * sum_h, axis=0) / count
    mean_qx = tl.sum(factor * sum_hx, axis=0) / count
    for start in range(0, PIXELS, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < PIXELS)[:, None] & inside[None, :]
        at = first + p[:, None] * C + k[None, :]
        normed = (tl.load(x_ptr + at, mask=mask, other=0.0) - mean) * rstd
        y = normed * factor[None, :] + shift[None, :]
        s = _sigmoid(y)
        h = tl.load(grad_ptr + at, mask=mask, other=0.0) * (s * (1.0 + y * (1.0 - s)))
        dx = rstd * (h * factor[None, :] - mean_q - normed * mean_qx)
        tl.store(dx_ptr + at, dx, mask=mask)


def _blocks(width: int) -> dict[str, int]:
    channels: int = triton.next_power_of_2(width)
    return {"BLOCK_P": max(_ELEMENTS // channels, _LEAST_PIXELS), "BLOCK_C": channels}


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    mean = x.new_empty((n, groups))
    out, rstd = empty_channels_last(x, n, c, h, w), torch.empty_like(mean)
    if n:
        tensors = (x, weight, bias, modulation, out, mean, rstd)
        sizes = (c, h * w, c // groups)
        _group_norm_silu_fwd_kernel[n, groups](*tensors, *sizes, EPS=eps, **_blocks(sizes[2]))
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
    (n, c, h, w), groups = x.shape, mean.shape[1]
    dx, partials = empty_channels_last(x, n, c, h, w), x.new_empty((2, n, c))
    dmodulation = x.new_empty(0) if modulation is None else torch.empty_like(modulation)
    if n:
        inputs = (grad, x, weight, bias, modulation, mean, rstd)
        tensors = (*inputs, dx, dmodulation, partials)
        sizes = (n, c, h * w, c // groups)
        _group_norm_silu_bwd_kernel[n, groups](*tensors, *sizes, **_blocks(sizes[3]))
    dweight, dbias = partials.sum(1, dtype=torch.float64).to(x.dtype).contiguous().unbind()
    return dx, dweight, dbias, dmodulation
