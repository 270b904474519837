"""fir_bias_act in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdistill.backends.arguments import Activation, empty_channels_last, fir_sizes

_BLOCK_C = 32  # channels of a program
_BLOCK_P = 64  # pixels of a program


@triton.jit
def _grad_before_activation(
    out, grad, SLOPE: tl.constexpr, GAIN: tl.constexpr, LIMIT: tl.constexpr
):
    # grad times the derivative, which the result tells
    g = grad * GAIN
    g = tl.where(out > 0.0, g, g * SLOPE)
    return tl.where((out >= LIMIT) | (out <= -LIMIT), 0.0, g)


@triton.jit
def _fir_bias_act_fwd_kernel(
    x_ptr, scale_ptr, bias_ptr, noise_ptr, taps_ptr, out_ptr, C, H, W, NOISE_STRIDE,
    SLOPE: tl.constexpr, GAIN: tl.constexpr, LIMIT: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    # one program per image, BLOCK_P pixels of the result and BLOCK_C channels; with taps the sides
    # of x are one longer
    image = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    cols = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    mask = (p < H * W)[:, None] & inside[None, :]
    at = p[:, None] * C + cols[None, :]
    if taps_ptr is None:
        value = tl.load(x_ptr + image * H * W * C + at, mask=mask, other=0.0)
    else:
        x_ptr += image * (H + 1) * (W + 1) * C
        value = tl.zeros((BLOCK_P, BLOCK_C), dtype=x_ptr.dtype.element_ty)
        for a in tl.static_range(4):
            along = tl.zeros((BLOCK_P, BLOCK_C), dtype=x_ptr.dtype.element_ty)
            row = p // W + a - 1
            for b in tl.static_range(4):
                column = p % W + b - 1
                inside_result = (row >= 0) & (row <= H) & (column >= 0) & (column <= W)
                source = (row * (W + 1) + column)[:, None] * C + cols[None, :]
                along += tl.load(taps_ptr + 3 - b) * tl.load(
                    x_ptr + source, mask=mask & inside_result[:, None], other=0.0
                )
            value += tl.load(taps_ptr + 3 - a) * along
    value *= tl.load(scale_ptr + image * C + cols, mask=inside, other=0.0)[None, :]
    if noise_ptr is not None:
        value += tl.load(noise_ptr + image * NOISE_STRIDE + p, mask=p < H * W, other=0.0)[:, None]
    if bias_ptr is not None:
        value += tl.load(bias_ptr + cols, mask=inside, other=0.0)[None, :]
    value = tl.where(value > 0.0, value, value * SLOPE) * GAIN
    value = tl.where(value > LIMIT, LIMIT, value)  # a NaN stays
    value = tl.where(value < -LIMIT, -LIMIT, value)
    tl.store(out_ptr + image * H * W * C + at, value, mask=mask)


@triton.jit
def _fir_bias_act_bwd_kernel(
    grad_ptr, out_ptr, x_ptr, scale_ptr, taps_ptr, dx_ptr, of_noise_ptr, partials_ptr, N, C, H, W,
    SLOPE: tl.constexpr, GAIN: tl.constexpr, LIMIT: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    # one program per image, BLOCK_P pixels of x and BLOCK_C channels; its sums go to partials [2,
    # N, blocks, C]
    image = tl.program_id(0).to(tl.int64)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    cols = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    width, height = W, H
    if taps_ptr is not None:
        width, height = W + 1, H + 1
    row, column = p // width, p % width
    mask = (p < height * width)[:, None] & inside[None, :]
    grad_ptr += image * H * W * C
    out_ptr += image * H * W * C
    inside_result = (row < H) & (column < W)
    source = (row * W + column)[:, None] * C + cols[None, :]
    grad = tl.load(grad_ptr + source, mask=mask & inside_result[:, None], other=0.0)
    own = _grad_before_activation(
        tl.load(out_ptr + source, mask=mask & inside_result[:, None], other=0.0),
        grad,
        SLOPE,
        GAIN,
        LIMIT,
    )
    raw = own
    if taps_ptr is not None:
        raw = tl.zeros((BLOCK_P, BLOCK_C), dtype=x_ptr.dtype.element_ty)
        for a in tl.static_range(4):
            along = tl.zeros((BLOCK_P, BLOCK_C), dtype=x_ptr.dtype.element_ty)
            i = row + 1 - a
            for b in tl.static_range(4):
                j = column + 1 - b
                reached = mask & ((i >= 0) & (i < H) & (j >= 0) & (j < W))[:, None]
                from_result = (i * W + j)[:, None] * C + cols[None, :]
                grad = tl.load(grad_ptr + from_result, mask=reached, other=0.0)
                out = tl.load(out_ptr + from_result, mask=reached, other=0.0)
                along += tl.load(taps_ptr + 3 - b) * _grad_before_activation(
                    out, grad, SLOPE, GAIN, LIMIT
                )
            raw += tl.load(taps_ptr + 3 - a) * along
    at = image * height * width * C + p[:, None] * C + cols[None, :]
    scale = tl.load(scale_ptr + image * C + cols, mask=inside, other=0.0)
    tl.store(dx_ptr + at, raw * scale[None, :], mask=mask)
    of_scale = tl.sum(raw * tl.load(x_ptr + at, mask=mask, other=0.0), axis=0)
    tl.store(partials_ptr + (image * blocks + block) * C + cols, of_scale, mask=inside)
    tl.store(
        partials_ptr + ((N + image) * blocks + block) * C + cols, tl.sum(own, axis=0), mask=inside
    )
    if of_noise_ptr is not None:  # [N, tiles of channels, H, W]
        tile, tiles = tl.program_id(2), tl.num_programs(2)
        of_noise_ptr += (image * tiles + tile) * H * W
        tl.store(of_noise_ptr + row * W + column, tl.sum(own, axis=1), mask=inside_result)


def _total(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.sum(dims, dtype=torch.float64).to(x.dtype)


def _constants(act: Activation) -> dict[str, float]:
    numbers = {"SLOPE": act.slope, "GAIN": act.gain, "LIMIT": act.limit}
    return numbers | {"BLOCK_P": _BLOCK_P, "BLOCK_C": _BLOCK_C}


def fir_bias_act(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    taps: Tensor | None,
    act: Activation,
) -> Tensor:
    n, c, h, w = fir_sizes(x.shape, taps)
    out = empty_channels_last(x, n, c, h, w)
    if out.numel():
        stride = h * w if noise is not None and noise.shape[0] > 1 else 0
        grid = (n, triton.cdiv(h * w, _BLOCK_P), triton.cdiv(c, _BLOCK_C))
        tensors = (x, scale, bias, noise, taps, out)
        _fir_bias_act_fwd_kernel[grid](*tensors, c, h, w, stride, **_constants(act))
    return out


def fir_bias_act_bwd(
    grad: Tensor, out: Tensor, x: Tensor, scale: Tensor, taps: Tensor | None, act: Activation,
    noise_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (n, c, height, width), (h, w) = x.shape, out.shape[2:]
    dx, blocks, tiles = (
        empty_channels_last(x, *x.shape),
        triton.cdiv(height * width, _BLOCK_P),
        triton.cdiv(c, _BLOCK_C),
    )
    partials = x.new_empty((2, n, blocks, c))
    of_noise = x.new_empty((n, tiles, h, w)) if noise_rows else None
    if x.numel():
        tensors = (grad, out, x, scale, taps, dx, of_noise, partials)
        _fir_bias_act_bwd_kernel[(n, blocks, tiles)](*tensors, n, c, h, w, **_constants(act))
    if of_noise is None:
        dnoise = x.new_empty((0, h, w))
    else:
        dnoise = _total(of_noise, (1,)) if noise_rows == n else _total(of_noise, (0, 1))[None]
    return dx, _total(partials[0], (1,)), _total(partials[1], (0, 1)), dnoise
