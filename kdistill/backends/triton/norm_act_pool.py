"""norm_act_pool in Triton."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdistill.backends.arguments import empty_channels_last

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
        x = tl.load(
            x_ptr + p[:, None] * C + cols[None, :], mask=mask, other=0.0
        )  # [BLOCK_P, BLOCK_C]
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
    scale = (
        0.25 * tl.load(weight_ptr + row, mask=inside, other=0.0) * rstd
    )  # a window averages four
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
    grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, dx_ptr, partials_ptr, N, C, H, W,
    IMAGES, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
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
    sum_h = tl.zeros(
        (BLOCK_C,), dtype=x_ptr.dtype.element_ty
    )  # h: grad where the activation is positive
    sum_hd = tl.zeros((BLOCK_C,), dtype=x_ptr.dtype.element_ty)
    for first in range(0, windows, BLOCK_P):
        j = first + tl.arange(0, BLOCK_P)
        mask = (j < windows)[:, None] & inside[None, :]
        grad = tl.load(grad_ptr + j[:, None] * C + cols[None, :], mask=mask, other=0.0)
        for corner in tl.static_range(4):
            p = (
                x_ptr
                + _window(j, W, C)[:, None]
                + cols[None, :]
                + (corner // 2) * W * C
                + (corner % 2) * C
            )
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
    # every pixel, those outside the windows too: h is zero in those
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


def _launch(kernel: Any, x: Tensor, weight: Tensor, *arguments: Any, **constants: float) -> None:
    """Run a kernel for every image and block of channels; its last numbers are the sizes."""
    n, c, h, w = x.shape
    if x.numel():
        numbers = (c, h, w, n // weight.shape[0])
        blocks = {"BLOCK_P": _BLOCK_P, "BLOCK_C": _BLOCK_C}
        kernel[(n, triton.cdiv(c, _BLOCK_C))](*arguments, *numbers, **constants, **blocks)


def norm_act_pool(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    out = empty_channels_last(x, n, c, h // 2, w // 2)
    mean, rstd = x.new_empty((n, c)), x.new_empty((n, c))
    tensors = (x, weight, bias, out, mean, rstd)
    _launch(_norm_act_pool_fwd_kernel, x, weight, *tensors, EPS=eps)
    return out, mean, rstd


def norm_act_pool_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    (n, c, *_), groups = x.shape, weight.shape[0]
    dx, partials = empty_channels_last(x, *x.shape), x.new_empty((2, n, c))
    tensors = (grad, x, weight, bias, mean, rstd, dx, partials)
    _launch(_norm_act_pool_bwd_kernel, x, weight, *tensors, n)
    shares = partials.view(2, groups, n // groups, c)
    dweight, dbias = shares.sum(2, dtype=torch.float64).to(x.dtype).unbind(0)
    return dx, dweight.clone(), dbias.clone()


@triton.jit
def _dual_moments(x_ptr, x_dot_ptr, P, C, cols, inside, BLOCK_P: tl.constexpr):
    # _moments, the mean of x_dot, and the sum of products of both deviations by the same recurrence
    mean = tl.zeros(cols.shape, dtype=x_ptr.dtype.element_ty)
    squares = tl.zeros(cols.shape, dtype=x_ptr.dtype.element_ty)
    mean_dot = tl.zeros(cols.shape, dtype=x_ptr.dtype.element_ty)
    products = tl.zeros(cols.shape, dtype=x_ptr.dtype.element_ty)
    for first in range(0, P, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        mask = (p < P)[:, None] & inside[None, :]
        at = p[:, None] * C + cols[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0)  # [BLOCK_P, BLOCK_C]
        x_dot = tl.load(x_dot_ptr + at, mask=mask, other=0.0)
        count = tl.minimum(P - first, BLOCK_P).to(x.dtype)
        local, local_dot = tl.sum(x, axis=0) / count, tl.sum(x_dot, axis=0) / count
        d = tl.where(mask, x - local[None, :], 0.0)
        e = tl.where(mask, x_dot - local_dot[None, :], 0.0)
        share = count / (first + count)
        step, step_dot = local - mean, local_dot - mean_dot
        mean += step * share
        squares += tl.sum(d * d, axis=0) + step * step * first * share
        mean_dot += step_dot * share
        products += tl.sum(d * e, axis=0) + step * step_dot * first * share
    return mean, squares, mean_dot, products


@triton.jit
def _norm_act_pool_tangent_kernel(
    x_ptr, x_dot_ptr, weight_ptr, weight_dot_ptr, bias_ptr, bias_dot_ptr, out_ptr, out_dot_ptr,
    mean_ptr, rstd_ptr, x_dot_mean_ptr, x_dot_proj_ptr, C, H, W, IMAGES, EPS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    windows, pixels = (H // 2) * (W // 2), H * W
    x_ptr += image * pixels * C
    x_dot_ptr += image * pixels * C
    mean, squares, mean_dot, products = _dual_moments(
        x_ptr, x_dot_ptr, pixels, C, cols, inside, BLOCK_P
    )
    rstd = 1.0 / tl.sqrt(squares / pixels + EPS)
    proj = products * (rstd / pixels)
    of = image * C + cols
    tl.store(mean_ptr + of, mean, mask=inside)
    tl.store(rstd_ptr + of, rstd, mask=inside)
    tl.store(x_dot_mean_ptr + of, mean_dot, mask=inside)
    tl.store(x_dot_proj_ptr + of, proj, mask=inside)
    row = image // IMAGES * C + cols
    scale = 0.25 * tl.load(weight_ptr + row, mask=inside, other=0.0) * rstd
    shift = 0.25 * tl.load(bias_ptr + row, mask=inside, other=0.0)
    scale_dot = rstd * (0.25 * tl.load(weight_dot_ptr + row, mask=inside, other=0.0) - scale * proj)
    shift_dot = 0.25 * tl.load(bias_dot_ptr + row, mask=inside, other=0.0)
    for first in range(0, windows, BLOCK_P):
        j = first + tl.arange(0, BLOCK_P)
        mask = (j < windows)[:, None] & inside[None, :]
        at = _window(j, W, C)[:, None] + cols[None, :]
        acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=x_ptr.dtype.element_ty)
        acc_dot = tl.zeros((BLOCK_P, BLOCK_C), dtype=x_ptr.dtype.element_ty)
        for corner in tl.static_range(4):
            pixel = at + (corner // 2) * W * C + (corner % 2) * C
            d = tl.load(x_ptr + pixel, mask=mask, other=0.0) - mean
            e = tl.load(x_dot_ptr + pixel, mask=mask, other=0.0) - mean_dot
            y = d * scale + shift
            acc += _relu(y)
            acc_dot += tl.where(
                y <= 0.0, 0.0, e * scale + (d * scale_dot + shift_dot)
            )  # a NaN stays
        to = image * windows * C + j[:, None] * C + cols[None, :]
        tl.store(out_ptr + to, acc, mask=mask)
        tl.store(out_dot_ptr + to, acc_dot, mask=mask)


# one kernel is one function: its parts share what is in registers
@triton.jit
def _norm_act_pool_bwd_tangent_kernel(
    grad_ptr, grad_dot_ptr, x_ptr, x_dot_ptr, weight_ptr, weight_dot_ptr, bias_ptr, mean_ptr,
    rstd_ptr, x_dot_mean_ptr, x_dot_proj_ptr, dx_ptr, dx_dot_ptr, partials_ptr, N, C, H, W, IMAGES,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    windows, pixels = (H // 2) * (W // 2), H * W
    x_ptr += image * pixels * C
    x_dot_ptr += image * pixels * C
    dx_ptr += image * pixels * C
    dx_dot_ptr += image * pixels * C
    grad_ptr += image * windows * C
    grad_dot_ptr += image * windows * C
    of = image * C + cols
    mean = tl.load(mean_ptr + of, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + of, mask=inside, other=0.0)
    mean_dot = tl.load(x_dot_mean_ptr + of, mask=inside, other=0.0)
    proj = tl.load(x_dot_proj_ptr + of, mask=inside, other=0.0)
    row = image // IMAGES * C + cols
    scale = 0.25 * tl.load(weight_ptr + row, mask=inside, other=0.0) * rstd
    shift = 0.25 * tl.load(bias_ptr + row, mask=inside, other=0.0)
    scale_dot = rstd * (0.25 * tl.load(weight_dot_ptr + row, mask=inside, other=0.0) - scale * proj)
    # h, h_dot: grad and grad_dot where the activation is positive; d, e: deviations of x and x_dot
    sum_h = tl.zeros((BLOCK_C,), dtype=x_ptr.dtype.element_ty)
    sum_hd = tl.zeros((BLOCK_C,), dtype=x_ptr.dtype.element_ty)
    sum_h_dot = tl.zeros((BLOCK_C,), dtype=x_ptr.dtype.element_ty)
    sum_hd_dot = tl.zeros((BLOCK_C,), dtype=x_ptr.dtype.element_ty)  # of h_dot * d + h * e
    for first in range(0, windows, BLOCK_P):
        j = first + tl.arange(0, BLOCK_P)
        mask = (j < windows)[:, None] & inside[None, :]
        from_window = j[:, None] * C + cols[None, :]
        grad = tl.load(grad_ptr + from_window, mask=mask, other=0.0)
        grad_dot = tl.load(grad_dot_ptr + from_window, mask=mask, other=0.0)
        for corner in tl.static_range(4):
            at = (
                _window(j, W, C)[:, None] + cols[None, :] + (corner // 2) * W * C + (corner % 2) * C
            )
            d = tl.load(x_ptr + at, mask=mask, other=0.0) - mean
            e = tl.load(x_dot_ptr + at, mask=mask, other=0.0) - mean_dot
            positive = d * scale + shift > 0.0
            h, h_dot = tl.where(positive, grad, 0.0), tl.where(positive, grad_dot, 0.0)
            sum_h += tl.sum(h, axis=0)
            sum_hd += tl.sum(h * d, axis=0)
            sum_h_dot += tl.sum(h_dot, axis=0)
            sum_hd_dot += tl.sum(h_dot * d + h * e, axis=0)
    turn = rstd * proj  # minus the derivative of log rstd
    dbias, dbias_dot = 0.25 * sum_h, 0.25 * sum_h_dot
    dweight = 0.25 * sum_hd * rstd
    dweight_dot = 0.25 * sum_hd_dot * rstd - turn * dweight
    tl.store(partials_ptr + of, dweight, mask=inside)
    tl.store(partials_ptr + N * C + of, dbias, mask=inside)
    tl.store(partials_ptr + 2 * N * C + of, dweight_dot, mask=inside)
    tl.store(partials_ptr + 3 * N * C + of, dbias_dot, mask=inside)
    gain, gain_dot = -4.0 * scale / pixels, -4.0 * scale_dot / pixels
    slope, offset = gain * rstd * dweight, gain * dbias
    slope_dot = rstd * (gain * dweight_dot + (gain_dot - gain * turn) * dweight)
    offset_dot = gain * dbias_dot + gain_dot * dbias
    # every pixel, those outside the windows too: h is zero in those
    for first in range(0, pixels, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        mask = (p < pixels)[:, None] & inside[None, :]
        i, j = p // W // 2, p % W // 2
        pooled = mask & ((i < H // 2) & (j < W // 2))[:, None]
        at = p[:, None] * C + cols[None, :]
        from_window = (i * (W // 2) + j)[:, None] * C + cols[None, :]
        d = tl.load(x_ptr + at, mask=mask, other=0.0) - mean
        e = tl.load(x_dot_ptr + at, mask=mask, other=0.0) - mean_dot
        grad = tl.load(grad_ptr + from_window, mask=pooled, other=0.0)
        grad_dot = tl.load(grad_dot_ptr + from_window, mask=pooled, other=0.0)
        positive = d * scale + shift > 0.0
        h = tl.where(positive, grad * scale, 0.0)
        h_dot = tl.where(positive, grad_dot * scale + grad * scale_dot, 0.0)
        tl.store(dx_ptr + at, h + (d * slope + offset), mask=mask)
        tl.store(dx_dot_ptr + at, h_dot + (e * slope + (d * slope_dot + offset_dot)), mask=mask)


def norm_act_pool_tangent(
    x: Tensor,
    x_dot: Tensor,
    weight: Tensor,
    weight_dot: Tensor,
    bias: Tensor,
    bias_dot: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    feature_maps = [empty_channels_last(x, n, c, h // 2, w // 2) for _ in range(2)]
    outputs = (*feature_maps, *(x.new_empty((n, c)) for _ in range(4)))
    tensors = (x, x_dot, weight, weight_dot, bias, bias_dot, *outputs)
    _launch(_norm_act_pool_tangent_kernel, x, weight, *tensors, EPS=eps)
    return outputs


def norm_act_pool_bwd_tangent(*inputs: Tensor) -> tuple[Tensor, ...]:
    x, weight = inputs[2], inputs[4]
    (n, c, *_), groups = x.shape, weight.shape[0]
    dx, dx_dot = (empty_channels_last(x, *x.shape) for _ in range(2))
    partials = x.new_empty((4, n, c))
    tensors = (*inputs, dx, dx_dot, partials)
    _launch(_norm_act_pool_bwd_tangent_kernel, x, weight, *tensors, n)
    summed = partials.view(4, groups, n // groups, c).sum(2, dtype=torch.float64).to(x.dtype)
    dweight, dbias, dweight_dot, dbias_dot = (s.clone() for s in summed.unbind(0))
    return dx, dx_dot, dweight, dweight_dot, dbias, dbias_dot
