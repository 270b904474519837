"""winograd_conv through csrc/cpu/winograd_conv.cpp and the library's batched matrix product."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.cpu import new_output

supports = partial(_native.refusal, "_cpu")

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


def winograd_conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    n, _, h, w = x.shape
    products = torch.bmm(winograd_conv_input(x, padding), winograd_conv_weight(weight))
    return winograd_conv_output(products, n, h + 2 * padding - 2, w + 2 * padding - 2)
