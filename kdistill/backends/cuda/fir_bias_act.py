"""fir_bias_act through csrc/cuda/fir_bias_act.cu."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cuda")

_PIXELS, _LANES = 256, 32  # kPixels and kLanes of the kernel


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _empty(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)


def fir_bias_act(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
) -> Tensor:
    n, c, h, w = x.shape
    out = _empty(x, n, c, h - (taps is not None), w - (taps is not None))
    run = _native.kernel("_cuda", "fir_bias_act", x.dtype, x.device)
    with _native.stream_of(x) as stream:
        run(
            *(
                x.data_ptr(),
                scale.data_ptr(),
                _address(bias),
                _address(noise),
                _address(taps),
                out.data_ptr(),
            ),
            *(
                n,
                c,
                *out.shape[2:],
                0 if noise is None else noise.shape[0],
                slope,
                gain,
                limit,
                stream,
            ),
        )
    return out


def fir_bias_act_bwd(
    grad: Tensor,
    out: Tensor,
    x: Tensor,
    scale: Tensor,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
    noise_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    dx, dscale, dbias = _empty(x, n, c, h, w), torch.empty_like(scale), x.new_empty(c)
    dnoise = x.new_empty((noise_rows, *out.shape[2:]))
    of_tiles = x.new_empty((n if noise_rows else 0, -(-c // _LANES), *out.shape[2:]))
    partials = x.new_empty((2, n, -(-h * w // _PIXELS), c))
    run = _native.kernel("_cuda", "fir_bias_act_bwd", x.dtype, x.device)
    with _native.stream_of(x) as stream:
        run(
            *(grad.data_ptr(), out.data_ptr(), x.data_ptr(), scale.data_ptr(), _address(taps)),
            *(
                dx.data_ptr(),
                dscale.data_ptr(),
                dbias.data_ptr(),
                dnoise.data_ptr(),
                of_tiles.data_ptr(),
                partials.data_ptr(),
            ),
            *(n, c, *out.shape[2:], noise_rows, slope, gain, limit, stream),
        )
    return dx, dscale, dbias, dnoise
