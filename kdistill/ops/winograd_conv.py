"""3x3 convolution by Winograd's F(4x4, 3x3): in one pass, and taken apart, six linear maps around 36 small matrix products.

    y = A' [ (G w G') * (B' x B) ] A,   and with M = A dy A':  dx = B [ U' M ] B',  dw = G' [ V' M ] G

Taken apart, an operand is transformed once and serves every product that it is part of, so a backward or tangent pass shares the
transforms of the others.  For the engine alone: nothing here is differentiable.  Derivation and error: docs/ops/winograd_conv.md.

Symbols: N images, C channels in, K channels out, H x W the map that comes in, h x w the one that goes out, p padding,
T = N * ceil(h/4) * ceil(w/4) tiles.
"""

from typing import cast

import torch
from torch import Tensor

from kdistill.errors import ShapeError
from kdistill.ops._registry import check_same_dtype_and_device, plain

GRAD_ORDER = 0

_conv, _conv_weight_grad = plain("winograd_conv"), plain("winograd_conv_weight_grad")
_input, _input_bwd = plain("winograd_conv_input"), plain("winograd_conv_input_bwd")
_weight, _weight_bwd = plain("winograd_conv_weight"), plain("winograd_conv_weight_bwd")
_output, _output_bwd = plain("winograd_conv_output"), plain("winograd_conv_output_bwd")


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def winograd_conv(x: Tensor, weight: Tensor, padding: int = 1, turned: bool = False) -> Tensor:
    """Return the 3x3 convolution (cross-correlation, stride 1) of ``x`` with ``weight``.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.  Channels-last memory is read as it is, anything else is converted first.
        weight: ``[K, C, 3, 3]``.
        padding: Zeros around the map, at least 0.
        turned: ``weight`` is ``[C, K, 3, 3]`` and its taps are turned around: with ``2 - padding`` this is the gradient in the
            input, for ``x`` that of the output.

    Returns:
        ``[N, K, H + 2p - 2, W + 2p - 2]``, channels-last.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: ``72*T*C*K`` flops in the products, against ``18*N*h*w*C*K`` of the plain sum: a quarter on maps whose sides are
        multiples of 4; memory for ``36*C*K`` elements and a block of tiles for every thread.  The rounding error is about five
        times that of the plain sum.

    References: Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural
    Networks, CVPR 2016.
    """
    inward, kind = (0, "[C, K, 3, 3]") if turned else (1, "[K, C, 3, 3]")
    if weight.ndim != 4 or x.ndim != 4 or (weight.shape[inward], *weight.shape[2:]) != (x.shape[1], 3, 3) or padding < 0:
        raise ShapeError(
            f"winograd_conv: expected x [N, C, H, W], weight {kind} and padding >= 0, got {list(x.shape)}, "
            f"{list(weight.shape)} and {padding}; use torch.nn.functional.conv2d for other kernels"
        )
    if min(x.shape[2:]) + 2 * padding < 3:
        raise ShapeError(
            f"winograd_conv: expected a map of at least 3x3 with its padding, got {list(x.shape[2:])} and {padding}; pad more"
        )
    check_same_dtype_and_device("winograd_conv", x=x, weight=weight)
    return cast("Tensor", _conv(_channels_last(x), weight.contiguous(), padding, turned))


def winograd_conv_weight_grad(x: Tensor, grad: Tensor, padding: int, scale: Tensor | None = None) -> Tensor:
    """Return the gradient ``[K, C, 3, 3]`` in the weight of ``winograd_conv(x * scale, weight, padding)``, in one pass.

    ``x [N, C, H, W]``, ``grad [N, K, h, w]`` of the result, ``scale [N, C]`` or None.
    """
    return cast("Tensor", _conv_weight_grad(_channels_last(x), _channels_last(grad), padding, scale))


def winograd_conv_input(x: Tensor, padding: int) -> Tensor:
    """Return ``V = B' x B`` of every tile of ``x [N, C, H, W]``: ``[36, T, C]``; planes may have gaps between them."""
    return cast("Tensor", _input(_channels_last(x), padding))


def winograd_conv_input_bwd(planes: Tensor, n: int, h: int, w: int, padding: int) -> Tensor:
    """Return the transpose of ``winograd_conv_input`` applied to ``planes [36, T, C]``: ``[n, C, h, w]``, channels-last."""
    return cast("Tensor", _input_bwd(planes, n, h, w, padding))


def winograd_conv_weight(weight: Tensor) -> Tensor:
    """Return ``U = G w G'`` of ``weight [K, C, 3, 3]``: ``[36, C, K]``."""
    return cast("Tensor", _weight(weight.contiguous()))


def winograd_conv_weight_bwd(planes: Tensor) -> Tensor:
    """Return the transpose of ``winograd_conv_weight`` applied to ``planes [36, C, K]``: ``[K, C, 3, 3]``."""
    return cast("Tensor", _weight_bwd(planes))


def winograd_conv_output(planes: Tensor, n: int, h: int, w: int) -> Tensor:
    """Return ``A' M A`` of every tile of ``planes [36, T, K]``: the map ``[n, K, h, w]``, channels-last."""
    return cast("Tensor", _output(planes, n, h, w))


def winograd_conv_output_bwd(grad: Tensor) -> Tensor:
    """Return the transpose of ``winograd_conv_output`` applied to ``grad [N, K, h, w]``: ``[36, T, K]``, gaps as above."""
    return cast("Tensor", _output_bwd(_channels_last(grad)))
