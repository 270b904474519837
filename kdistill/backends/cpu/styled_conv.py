"""styled_conv through csrc/cpu/styled_conv.cpp; the rest of the backward is fir_bias_act's and winograd_conv's."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.cpu.fir_bias_act import fir_bias_act, fir_bias_act_bwd
from kdistill.backends.cpu.winograd_conv import DOUBLED, PLANES, plan, tiles_of, weight_grad

supports = partial(_native.refusal, "_cpu")


def styled_conv(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (n, c, h, w), k = x.shape, len(weight)
    scale, squares = x.new_empty((n, k)), x.new_empty((k, c))
    demodulation = _native.kernel("_cpu", "styled_conv_demodulation", x.dtype)
    demodulation(
        *(weight.data_ptr(), styles.data_ptr(), squares.data_ptr(), scale.data_ptr()),
        *(n, c, k, torch.get_num_threads()),
    )
    if taps is not None:
        y = _doubled(x, weight, styles)
        return (
            fir_bias_act(y, scale, bias, noise, taps, slope, gain, limit),
            y if keep else x.new_empty(0),
            scale,
        )
    out = x.new_empty((n, h, w, k)).permute(0, 3, 1, 2)
    y = torch.empty_like(out) if keep else x.new_empty(0)
    memory, way = plan(x, c, k, tiles_of(x))
    run = _native.kernel("_cpu", "styled_conv", x.dtype)
    run(
        *(x.data_ptr(), weight.data_ptr(), styles.data_ptr(), scale.data_ptr(), bias.data_ptr()),
        *(
            0 if noise is None else noise.data_ptr(),
            y.data_ptr(),
            out.data_ptr(),
            memory.data_ptr(),
        ),
        *(n, h, w, c, k, 0 if noise is None else noise.shape[0], slope, gain, limit, *way),
    )
    return out, y, scale


def _doubled(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
    """Return the transposed convolution of ``x * styles`` with stride 2, ``[N, K, 2H + 1, 2W + 1]``."""
    (n, c, h, w), k = x.shape, len(weight)
    y = x.new_empty((n, 2 * h + 1, 2 * w + 1, k)).permute(0, 3, 1, 2)
    memory, way = plan(x, c, k, tiles_of(x), DOUBLED, images=n)
    run = _native.kernel("_cpu", "styled_conv_doubled", x.dtype)
    run(
        x.data_ptr(),
        weight.data_ptr(),
        styles.data_ptr(),
        y.data_ptr(),
        memory.data_ptr(),
        n,
        h,
        w,
        c,
        k,
        *way,
    )
    return y


def styled_conv_bwd(
    grad: Tensor,
    out: Tensor,
    y: Tensor,
    scale: Tensor,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
    noise_rows: int,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (n, c, h, w), k = x.shape, len(weight)
    dy, dscale, dbias, dnoise = fir_bias_act_bwd(
        grad, out, y, scale, taps, slope, gain, limit, noise_rows
    )
    dx, dstyles = torch.empty_like(x), torch.empty_like(styles)
    of_tiles = x.new_empty((tiles_of(x), c))
    memory, way = plan(x, k, c, tiles_of(x), PLANES if taps is None else DOUBLED)
    run = _native.kernel("_cpu", "styled_conv_input_bwd", x.dtype)
    run(
        *(
            dy.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            styles.data_ptr(),
            dx.data_ptr(),
            dstyles.data_ptr(),
        ),
        *(of_tiles.data_ptr(), memory.data_ptr(), n, h, w, c, k, taps is not None, *way),
    )
    dweight = weight.new_empty(0)
    if wants_weight:
        dweight = weight_grad(x, dy, 1, styles, doubles=taps is not None)
    squares = x.new_empty((k, c))
    demodulation = _native.kernel("_cpu", "styled_conv_demodulation_bwd", x.dtype)
    demodulation(
        *(
            dscale.data_ptr(),
            scale.data_ptr(),
            weight.data_ptr(),
            styles.data_ptr(),
            squares.data_ptr(),
            dstyles.data_ptr(),
        ),
        *(dweight.data_ptr(), n, c, k, torch.get_num_threads()),
    )
    return dx, dweight, dstyles, dbias, dnoise
