"""filtered_lrelu through csrc/cpu/filtered_lrelu.cpp."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cpu")

_COLUMNS = 48  # of the result in a tile, at most: its rows stay in L1


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _length(taps: Tensor | None) -> int:
    return 1 if taps is None else len(taps)


def _empty(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)


def _tile(width: int) -> int:
    # equal tiles, of whole bytes of the mask
    return -(-width // -(-width // _COLUMNS) // 4) * 4


def _scratch(
    like: Tensor, rows: int, tile: int, first: int, second: int, up: int, down: int
) -> tuple[Tensor, int, int]:
    """Return memory for the factors and for every thread, and both sizes; the filters in the order in which they run."""
    tables = -(-(first + second + up + down + 2 * max(first, second)) // 16) * 16
    raised = tile * down + second
    across = (raised + first) // up + 2
    vectors = ((rows + first) // up + 2) * across + max(across, tile) + raised + second * tile
    per_thread = vectors * (64 // like.element_size())
    return like.new_empty(tables + per_thread * torch.get_num_threads()), tables, per_thread


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
    tile = _tile(out.shape[3])
    scratch, *sizes = _scratch(x, rows, tile, t, s, up, down)
    run = _native.kernel("_cpu", "filtered_lrelu", x.dtype)
    run(
        *(
            x.data_ptr(),
            _address(bias),
            _address(up_taps),
            _address(down_taps),
            out.data_ptr(),
            mask.data_ptr() if keep else 0,
        ),
        *(
            scratch.data_ptr(),
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
            slope,
            gain,
            limit,
        ),
        *(tile, *sizes, torch.get_num_threads()),
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
    dx, dbias, tile = _empty(grad, n, c, height, width), grad.new_empty(c), _tile(width)
    partials = grad.new_empty((n, -(-width // tile), c))
    scratch, *sizes = _scratch(grad, rows, tile, s, t, down, up)
    run = _native.kernel("_cpu", "filtered_lrelu_bwd", grad.dtype)
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
            scratch.data_ptr(),
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
        ),
        *(slope, gain, tile, *sizes, torch.get_num_threads()),
    )
    return dx, dbias
