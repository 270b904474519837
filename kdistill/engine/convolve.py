"""Differentiable convolutions that take the faster way: Winograd's where it pays, the library's elsewhere.

The graph-free passes of the students call ``engine.convolutions`` directly; this is for networks that autograd walks through.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from kdistill.engine.convolutions import asked_convolution, convolution_for, is_winograd
from kdistill.engine.layers import chunk_rows
from kdistill.ops import fir_bias_act
from kdistill.ops._registry import asked_backend, fast_apply

FEWEST_TILES = 16  # of 4×4 pixels; below, transforming the weights costs more than the multiplications that it saves
FEWEST_CHANNELS = 48  # below, transforming the maps does
_DOMAIN = 9 / 4  # what a map grows by in Winograd's domain


def convolve(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Return ``conv2d(x, weight, padding=padding)``, by Winograd's F(4×4, 3×3) on a CPU where that is faster.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.
        weight: ``[K, C, k, k]``; other kernels than 3×3, maps that are not square, few channels and few pixels go to the library.
        padding: Zeros on every side.

    Returns:
        ``[N, K, h, w]``; differentiable as often as the library's convolution, which takes over where a gradient is itself being
        differentiated.

    Cost: forward, and gradients only in what requires them, with a quarter of the multiplications; the rounding error is about
        five times that of the plain sum (NUMERICS.md), and ``KDISTILL_CONVOLUTION=direct`` gives that sum.
    """
    (k, c), (n, _, height, width) = weight.shape[:2], x.shape
    if tuple(weight.shape[2:]) != (3, 3) or height != width or not is_winograd(c, k, padding, height, x):
        return functional.conv2d(x, weight, padding=padding)
    tiles = n * (-(-(height + 2 * padding - 2) // 4)) ** 2
    if asked_convolution() == "auto" and (tiles < FEWEST_TILES or min(k, c) < FEWEST_CHANNELS):
        return functional.conv2d(x, weight, padding=padding)
    return cast("Tensor", _apply(x, weight, padding))


def convolve_scaled(x: Tensor, scale: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Return ``convolve(x * scale[:, :, None, None], weight, padding)``: a modulated convolution before its demodulation.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.
        scale: ``[N, C]``.
        weight: ``[K, C, k, k]``.
        padding: Zeros on every side.

    Returns:
        ``[N, K, h, w]``; differentiable twice.  Where kernels of one pixel have fewer outputs than inputs, the scale goes into
        the weights of every image, which are few; not with the reference backend.
    """
    n, c, h, w = x.shape
    if asked_backend() == "reference" or tuple(weight.shape[2:]) != (1, 1) or padding or len(weight) >= c:
        return convolve(fir_bias_act(x, scale), weight, padding)
    own = weight[:, :, 0, 0] * scale[:, None]  # [N, K, C]
    rows = x.permute(0, 2, 3, 1).reshape(n, h * w, c)  # a view where channels are last
    return (rows @ own.transpose(1, 2)).reshape(n, h, w, -1).permute(0, 3, 1, 2)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, padding: int) -> Tensor:
        (k, c), side = weight.shape[:2], x.shape[2]
        conv = convolution_for(c, k, padding, side, x)
        operand = conv.weight(weight)
        return _joined([conv.output(len(part), (conv.input(part), operand)) for part in _chunks(x, k)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted, padding = ctx.needs_input_grad, ctx.padding
        if torch.is_grad_enabled():  # being differentiated again
            mask = [wanted[0], wanted[1], False]
            dx, dweight, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, mask
            )
            return dx, dweight, None
        (k, c), side = weight.shape[:2], x.shape[2]
        conv, parts, total = convolution_for(c, k, padding, side, x), [], None
        operand = conv.weight(weight) if wanted[0] else None
        for part, above in zip(_chunks(x, k), _chunks(grad, c), strict=True):
            of_grad = conv.grad(above)
            if operand is not None:
                parts.append(conv.input_grad(len(part), (of_grad, operand)))
            if wanted[1]:
                total = conv.weight_grad(total, (conv.input(part), of_grad))
        return _joined(parts) if parts else None, None if total is None else conv.from_weight(total), None


_apply = fast_apply(_Convolve)


def _chunks(x: Tensor, other_channels: int) -> list[Tensor]:
    """Return the images in parts whose larger map fits the cache in Winograd's domain; the same number for x and its gradient."""
    largest = max(x.shape[1], other_channels) * x.shape[2] * x.shape[3] * x.element_size()
    return list(x.split(chunk_rows(x, int(_DOMAIN * largest))))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
