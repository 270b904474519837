"""fir_bias_act through csrc/cpu/fir_bias_act.cpp."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cpu")

_ROWS = 20  # of a band, the unit of work, at most; its sums are added up in the order of the bands


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _rows(height: int) -> int:
    return max(1, -(-height // -(-height // _ROWS)) if height else 1)


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
    run = _native.kernel("_cpu", "fir_bias_act", x.dtype)
    run(
        *(
            x.data_ptr(),
            scale.data_ptr(),
            _address(bias),
            _address(noise),
            _address(taps),
            out.data_ptr(),
        ),
        *(n, c, *out.shape[2:], 0 if noise is None else noise.shape[0], slope, gain, limit),
        *(_rows(out.shape[2]), torch.get_num_threads()),
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
    rows = _rows(h)
    partials = x.new_empty((2, n, -(-h // rows), c))
    dnoise = x.new_empty((noise_rows, *out.shape[2:]))
    of_images = dnoise if noise_rows in (0, n) else x.new_empty((n, *out.shape[2:]))
    run = _native.kernel("_cpu", "fir_bias_act_bwd", x.dtype)
    run(
        *(grad.data_ptr(), out.data_ptr(), x.data_ptr(), scale.data_ptr(), _address(taps)),
        *(
            dx.data_ptr(),
            dscale.data_ptr(),
            dbias.data_ptr(),
            dnoise.data_ptr(),
            of_images.data_ptr(),
            partials.data_ptr(),
        ),
        *(n, c, *out.shape[2:], noise_rows, slope, gain, limit, rows, torch.get_num_threads()),
    )
    return dx, dscale, dbias, dnoise
