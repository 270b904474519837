"""filtered_lrelu through csrc/cpu/filtered_lrelu.cpp."""

import torch
from torch import Tensor

from kdistill.backends.arguments import Resampling, empty_channels_last
from kdistill.backends.cpu import launch

_COLUMNS = 48  # of the result in a tile, at most: its rows stay in L1


def _tile(width: int) -> int:
    # equal tiles, of whole bytes of the mask
    return -(-width // -(-width // _COLUMNS) // 4) * 4


def _scratch(
    like: Tensor, rows: int, tile: int, first: int, second: int, up: int, down: int
) -> tuple[Tensor, int, int]:
    """Return memory for the factors and for every thread, and both sizes."""
    tables = -(-(first + second + up + down + 2 * max(first, second)) // 16) * 16
    upsampled = tile * down + second
    across = (upsampled + first) // up + 2
    vectors = ((rows + first) // up + 2) * across + max(across, tile) + upsampled + second * tile
    per_thread = vectors * (64 // like.element_size())
    return like.new_empty(tables + per_thread * torch.get_num_threads()), tables, per_thread


def filtered_lrelu(
    x: Tensor,
    bias: Tensor | None,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    how: Resampling,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    g, out, mask = how.outputs(x, up_taps, down_taps, keep)
    tile = _tile(g.w)
    scratch, *sizes = _scratch(x, g.rows, tile, g.up_taps, g.down_taps, g.up, g.down)
    tensors = (x, bias, up_taps, down_taps, out, mask if keep else None, scratch)
    launch("filtered_lrelu", tensors, *g, how.slope, how.gain, how.limit, tile, *sizes)
    return out, mask


def filtered_lrelu_bwd(
    grad: Tensor,
    mask: Tensor,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    size: list[int],
    how: Resampling,
) -> tuple[Tensor, Tensor]:
    g = how.geometry((*grad.shape[:2], *size), up_taps, down_taps)
    dx, dbias, tile = empty_channels_last(grad, *g[:4]), grad.new_empty(g.c), _tile(g.width)
    partials = grad.new_empty((g.n, -(-g.width // tile), g.c))
    scratch, *sizes = _scratch(grad, g.rows, tile, g.down_taps, g.up_taps, g.down, g.up)
    tensors = (grad, mask, up_taps, down_taps, dx, dbias, partials, scratch)
    launch("filtered_lrelu_bwd", tensors, *g, how.slope, how.gain, tile, *sizes)
    return dx, dbias
