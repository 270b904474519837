"""winograd_conv through csrc/cpu/winograd_conv.cpp."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.cpu import new_output

supports = partial(_native.refusal, "_cpu")

_PANEL = 32  # outputs that the native pass multiplies at a time, at most (float32, AVX-512)
_ROWS = 6  # tiles that it does
_GAP = 16  # elements between two of its planes
_CACHE = 440 << 10  # bytes of the second cache for its block of tiles
_FEWEST_TILES, _MOST_TILES = 24, 48
_FILTERS = 8 << 20  # bytes of transformed filters, from which on a pass goes by panels
_MOST_TILES_OF_A_PANEL = 96
_PAD = 64  # bytes between two planes: without them all 36 would start in the same few lines of the cache


def _planes(like: Tensor, rows: int, channels: int) -> Tensor:
    """Return an uninitialised ``[36, rows, channels]`` with padded planes."""
    stride = rows * channels + _PAD // like.element_size()
    return new_output(like, (36 * stride,)).as_strided((36, rows, channels), (stride, channels, 1))


def _channels_last(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)


def _padded(planes: Tensor) -> Tensor:
    return planes if planes.stride()[1:] == (planes.shape[2], 1) else planes.contiguous()


def winograd_conv_input(x: Tensor, padding: int) -> Tensor:
    n, c, h, w = x.shape
    planes = _planes(x, n * ((h + 2 * padding + 1) // 4) * ((w + 2 * padding + 1) // 4), c)
    run = _native.kernel("_cpu", "winograd_conv_input", x.dtype)
    run(x.data_ptr(), planes.data_ptr(), n, h, w, c, padding, planes.stride(0), torch.get_num_threads())
    return planes


def winograd_conv_input_bwd(planes: Tensor, n: int, h: int, w: int, padding: int) -> Tensor:
    planes = _padded(planes)
    dx = _channels_last(planes, n, planes.shape[2], h, w)
    run = _native.kernel("_cpu", "winograd_conv_input_bwd", planes.dtype)
    run(planes.data_ptr(), dx.data_ptr(), n, h, w, planes.shape[2], padding, planes.stride(0), torch.get_num_threads())
    return dx


def winograd_conv_output(planes: Tensor, n: int, h: int, w: int) -> Tensor:
    planes = _padded(planes)
    y = _channels_last(planes, n, planes.shape[2], h, w)
    run = _native.kernel("_cpu", "winograd_conv_output", planes.dtype)
    run(planes.data_ptr(), y.data_ptr(), n, h, w, planes.shape[2], planes.stride(0), torch.get_num_threads())
    return y


def winograd_conv_output_bwd(grad: Tensor) -> Tensor:
    n, k, h, w = grad.shape
    planes = _planes(grad, n * -(-h // 4) * -(-w // 4), k)
    run = _native.kernel("_cpu", "winograd_conv_output_bwd", grad.dtype)
    run(grad.data_ptr(), planes.data_ptr(), n, h, w, k, planes.stride(0), torch.get_num_threads())
    return planes


def winograd_conv_weight(weight: Tensor) -> Tensor:
    k, c = weight.shape[:2]
    planes = _planes(weight, c, k)
    run = _native.kernel("_cpu", "winograd_conv_weight", weight.dtype)
    run(weight.data_ptr(), planes.data_ptr(), k, c, planes.stride(0), torch.get_num_threads())
    return planes


def winograd_conv_weight_bwd(planes: Tensor) -> Tensor:
    planes = _padded(planes)
    c, k = planes.shape[1:]
    dweight = planes.new_empty((k, c, 3, 3))
    run = _native.kernel("_cpu", "winograd_conv_weight_bwd", planes.dtype)
    run(planes.data_ptr(), dweight.data_ptr(), k, c, planes.stride(0), torch.get_num_threads())
    return dweight


def plan(like: Tensor, inputs: int, outputs: int, tiles: int) -> tuple[Tensor, tuple[Any, ...]]:
    """Return memory for the native pass, which must outlive it, and how it goes: its last five arguments."""
    threads, width = torch.get_num_threads(), _padded_to_panels(outputs)
    by_panels = 36 * inputs * width * like.element_size() > _FILTERS
    if by_panels:
        block = max(1, min(tiles, _MOST_TILES_OF_A_PANEL))
        shared, per_thread = block * inputs + _GAP, (inputs + block) * _PANEL + 2 * _GAP
    else:
        block = _block(inputs + width, like)
        shared, per_thread = inputs * width + _GAP, block * (inputs + width) + 2 * _GAP
    memory = new_output(like, (36 * (shared + threads * per_thread),))
    return memory, (block, by_panels, 36 * shared, 36 * per_thread, threads)


def winograd_conv(x: Tensor, weight: Tensor, padding: int, turned: bool) -> Tensor:
    n, c, h, w = x.shape
    k = weight.shape[1 if turned else 0]
    y = _channels_last(x, n, k, h + 2 * padding - 2, w + 2 * padding - 2)
    memory, way = plan(x, c, k, tiles_of(y))
    run = _native.kernel("_cpu", "winograd_conv", x.dtype)
    run(x.data_ptr(), weight.data_ptr(), y.data_ptr(), memory.data_ptr(), n, h, w, c, k, padding, turned, *way)
    return y


def winograd_conv_weight_grad(x: Tensor, grad: Tensor, padding: int, scale: Tensor | None) -> Tensor:
    (n, c, h, w), k, threads = x.shape, grad.shape[1], torch.get_num_threads()
    dweight = x.new_empty((k, c, 3, 3))
    own, width = -(-c // threads), _padded_to_panels(k)
    block = _block(own + width, x)
    per_thread = 36 * (block * (own + width) + own * width + 3 * _GAP)
    memory = new_output(x, (threads * per_thread,))
    run = _native.kernel("_cpu", "winograd_conv_weight_grad", x.dtype)
    run(
        *(x.data_ptr(), 0 if scale is None else scale.data_ptr(), grad.data_ptr(), dweight.data_ptr(), memory.data_ptr()),
        *(n, h, w, c, k, padding, block, per_thread, threads),
    )
    return dweight


def tiles_of(y: Tensor) -> int:
    """Return how many tiles of 4x4 pixels a map ``[N, K, h, w]`` has."""
    n, _, h, w = y.shape
    return n * -(-h // 4) * -(-w // 4)


def _block(width: int, like: Tensor) -> int:
    """Return the tiles of a block whose planes of ``width`` channels, in and out, fit the cache."""
    return max(_FEWEST_TILES, min(_CACHE // (36 * width * like.element_size()), _MOST_TILES) // _ROWS * _ROWS)


def _padded_to_panels(outputs: int) -> int:
    return -(-outputs // _PANEL) * _PANEL
