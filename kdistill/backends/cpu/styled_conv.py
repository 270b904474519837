"""styled_conv through csrc/cpu/styled_conv.cpp, with fir_bias_act and winograd_conv behind it."""

import torch
from torch import Tensor

from kdistill.backends.arguments import Activation, empty_channels_last
from kdistill.backends.cpu import launch
from kdistill.backends.cpu.fir_bias_act import fir_bias_act, fir_bias_act_bwd
from kdistill.backends.cpu.winograd_conv import DOUBLED, PLANES, plan, tiles_of, weight_grad


def styled_conv(
    x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, noise: Tensor | None,
    taps: Tensor | None, act: Activation, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (n, c, h, w), k = x.shape, len(weight)
    scale, squares = x.new_empty((n, k)), x.new_empty((k, c))
    launch("styled_conv_demodulation", (weight, styles, squares, scale), n, c, k)
    if taps is not None:
        y = _doubled(x, weight, styles)
        out = fir_bias_act(y, scale, bias, noise, taps, act)
        return out, y if keep else x.new_empty(0), scale
    out = empty_channels_last(x, n, k, h, w)
    y = torch.empty_like(out) if keep else x.new_empty(0)
    memory, way = plan(x, c, k, tiles_of(x))
    tensors = (x, weight, styles, scale, bias, noise, y, out, memory)
    noise_rows = 0 if noise is None else noise.shape[0]
    launch("styled_conv", tensors, n, h, w, c, k, noise_rows, *act, *way)
    return out, y, scale


def _doubled(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
    """Return the transposed convolution of stride 2, ``[N, K, 2H + 1, 2W + 1]``."""
    (n, c, h, w), k = x.shape, len(weight)
    y = empty_channels_last(x, n, k, 2 * h + 1, 2 * w + 1)
    memory, way = plan(x, c, k, tiles_of(x), DOUBLED, images=n)
    launch("styled_conv_doubled", (x, weight, styles, y, memory), n, h, w, c, k, *way)
    return y


def styled_conv_bwd(
    grad: Tensor, out: Tensor, y: Tensor, scale: Tensor, x: Tensor, weight: Tensor, styles: Tensor,
    taps: Tensor | None, act: Activation, noise_rows: int, wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (n, c, h, w), k, doubles = x.shape, len(weight), taps is not None
    dy, dscale, dbias, dnoise = fir_bias_act_bwd(grad, out, y, scale, taps, act, noise_rows)
    dx, dstyles = torch.empty_like(x), torch.empty_like(styles)
    of_tiles = x.new_empty((tiles_of(x), c))
    memory, way = plan(x, k, c, tiles_of(x), DOUBLED if doubles else PLANES)
    tensors = (dy, x, weight, styles, dx, dstyles, of_tiles, memory)
    launch("styled_conv_input_bwd", tensors, n, h, w, c, k, doubles, *way)
    dweight = weight.new_empty(0)
    if wants_weight:
        dweight = weight_grad(x, dy, 1, styles, doubles=doubles)
    squares = x.new_empty((k, c))
    tensors = (dscale, scale, weight, styles, squares, dstyles, dweight)
    launch("styled_conv_demodulation_bwd", tensors, n, c, k)
    return dx, dweight, dstyles, dbias, dnoise
