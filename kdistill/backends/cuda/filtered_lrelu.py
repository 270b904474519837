"""filtered_lrelu through csrc/cuda/filtered_lrelu.cu."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cuda")

_TILE = 16  # kTile of the kernel


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _length(taps: Tensor | None) -> int:
    return 1 if taps is None else len(taps)


def _empty(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)


def filtered_lrelu(
    x: Tensor,
    bias: Tensor | None,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    up: int,
    down: int,
    padding: list[int],
    slope: float,
    gain: float,
    limit: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    t, s = _length(up_taps), _length(down_taps)
    left, right, above, below = padding
    rows, columns = h * up + above + below - t + 1, w * up + left + right - t + 1
    out = _empty(x, n, c, (rows - s) // down + 1, (columns - s) // down + 1)
    mask = x.new_empty((n, rows, (columns + 3) // 4, c) if keep else (0,), dtype=torch.uint8)
    run = _native.kernel("_cuda", "filtered_lrelu", x.dtype, x.device)
    with _native.stream_of(x) as stream:
        run(
            *(x.data_ptr(), _address(bias), _address(up_taps), _address(down_taps), out.data_ptr()),
            *(
                mask.data_ptr() if keep else 0,
                n,
                c,
                h,
                w,
                rows,
                columns,
                *out.shape[2:],
                t,
                s,
                up,
                down,
                left,
                above,
            ),
            *(slope, gain, limit, stream),
        )
    return out, mask


def filtered_lrelu_bwd(
    grad: Tensor,
    mask: Tensor,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    height: int,
    width: int,
    up: int,
    down: int,
    padding: list[int],
    slope: float,
    gain: float,
) -> tuple[Tensor, Tensor]:
    n, c, h, w = grad.shape
    t, s = _length(up_taps), _length(down_taps)
    left, right, above, _ = padding
    rows, columns = mask.shape[1], width * up + left + right - t + 1
    dx, dbias = _empty(grad, n, c, height, width), grad.new_empty(c)
    partials = grad.new_empty((n, -(-height // _TILE) * -(-width // _TILE), c))
    run = _native.kernel("_cuda", "filtered_lrelu_bwd", grad.dtype, grad.device)
    with _native.stream_of(grad) as stream:
        run(
            *(
                grad.data_ptr(),
                mask.data_ptr(),
                _address(up_taps),
                _address(down_taps),
                dx.data_ptr(),
                dbias.data_ptr(),
            ),
            *(
                partials.data_ptr(),
                n,
                c,
                height,
                width,
                rows,
                columns,
                h,
                w,
                t,
                s,
                up,
                down,
                left,
                above,
                slope,
                gain,
                stream,
            ),
        )
    return dx, dbias
