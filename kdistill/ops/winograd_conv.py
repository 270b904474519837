"""3x3 convolution by Winograd's F(4x4, 3x3), its gradients, and sums of two of them, each in one pass over the maps.

    y = A' [ (G w G') * (B' x B) ] A

For the engine alone: nothing here is differentiable.  Derivation and error:
    docs/ops/winograd_conv.md.

Symbols: N images, C channels in, K channels out, H x W the map that comes in, h x w the one that
    goes out, p padding,
T = N * ceil(h/4) * ceil(w/4) tiles.
"""

from typing import cast

import torch
from torch import Tensor

from kdistill.errors import ShapeError
from kdistill.ops._layout import Layout, array, maps, require, sizes_of
from kdistill.ops._registry import check_same_dtype_and_device, plain

GRAD_ORDER = 0

Pair = tuple[Tensor, Tensor]


def _layouts(
    x: Tensor, weight: Tensor, padding: int, turned: bool, x1: Tensor | None, weight1: Tensor | None
) -> tuple[Layout, ...]:
    n, c, h, w = sizes_of(x, "x [N, C, H, W]")
    k = sizes_of(weight, "weight [K, C, 3, 3]")[1 if turned else 0]
    require(
        padding >= 0 and min(h, w) + 2 * padding >= 3,
        "a map of at least 3x3 with its padding",
        f"{[h, w]} and {padding}",
    )
    require(min(c, k) >= 1, "channels in and out", f"C = {c} and K = {k}")
    filters = array(c, k, 3, 3) if turned else array(k, c, 3, 3)
    return maps(n, c, h, w), filters, maps(n, c, h, w), filters


def _layouts_weight_grad(
    x: Tensor, grad: Tensor, padding: int, x1: Tensor | None, grad1: Tensor | None
) -> tuple[Layout, ...]:
    n, c, h, w = sizes_of(x, "x [N, C, H, W]")
    k = sizes_of(grad, "grad [N, K, h, w]")[1]
    require(
        padding >= 0 and min(h, w) + 2 * padding >= 3,
        "a map of at least 3x3 with its padding",
        f"{[h, w]} and {padding}",
    )
    require(min(c, k) >= 1, "channels in and out", f"C = {c} and K = {k}")
    out = maps(n, k, h + 2 * padding - 2, w + 2 * padding - 2)
    return maps(n, c, h, w), out, maps(n, c, h, w), out


_conv, _weight_grad = (
    plain("winograd_conv", _layouts),
    plain("winograd_conv_weight_grad", _layouts_weight_grad),
)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def winograd_conv(x: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
    """Return the 3x3 convolution (cross-correlation, stride 1) of ``x`` with ``weight``.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.  Channels-last memory is read as it is, anything
            else is converted first.
        weight: ``[K, C, 3, 3]``.
        padding: Zeros around the map, at least 0.

    Returns:
        ``[N, K, H + 2p - 2, W + 2p - 2]``, channels-last.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: ``72*T*C*K`` flops in the products, against ``18*N*h*w*C*K`` of the plain sum: a quarter
        on maps whose sides are multiples of 4; memory for a block of tiles of every thread and,
        below 8 MB, for all ``36*C*K`` transformed filters. The rounding error is about five times
        that of the plain sum.

    References: Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast
        Algorithms for Convolutional Neural
    Networks, CVPR 2016.
    """
    if (
        weight.ndim != 4
        or x.ndim != 4
        or tuple(weight.shape[1:]) != (x.shape[1], 3, 3)
        or padding < 0
    ):
        raise ShapeError(
            "winograd_conv: expected x [N, C, H, W], weight [K, C, 3, 3] and padding >= 0, got "
            f"{list(x.shape)}, "
            f"{list(weight.shape)} and {padding}; use torch.nn.functional.conv2d for other kernels"
        )
    if min(*x.shape[1:], len(weight)) < 1 or not x.is_floating_point():
        raise ShapeError(
            f"winograd_conv: expected floats and channels, rows and columns, got {x.dtype}, "
            f"{list(x.shape)} and "
            f"{list(weight.shape)}; leave empty maps out"
        )
    if min(x.shape[2:]) + 2 * padding < 3:
        raise ShapeError(
            "winograd_conv: expected a map of at least 3x3 with its padding, got "
            f"{list(x.shape[2:])} and {padding}; pad more"
        )
    return winograd_conv_output((x, weight), padding=padding)


def winograd_conv_output(*pairs: Pair, padding: int) -> Tensor:
    """Return the sum over one or two (x ``[N, C, H, W]``, weight ``[K, C, 3, 3]``) of their convolutions."""
    return _sum(pairs, padding, turned=False)


def winograd_conv_input_grad(*pairs: Pair, padding: int) -> Tensor:
    """Return the sum over one or two (grad ``[N, K, h, w]``, weight ``[K, C, 3, 3]``) of the gradients in the input."""
    if (over := padding - 2) > 0:  # the outermost results are of zeros alone
        pairs = tuple((grad[:, :, over:-over, over:-over], weight) for grad, weight in pairs)
    return _sum(pairs, max(2 - padding, 0), turned=True)


def winograd_conv_weight_grad(*pairs: Pair, padding: int) -> Tensor:
    """Return the sum over one or two (x ``[N, C, H, W]``, grad ``[N, K, h, w]``) of the gradients in the weight."""
    (x, grad), (x1, grad1) = _two(pairs)
    other = (_maybe_channels_last(t) for t in (x1, grad1))
    return cast("Tensor", _weight_grad(_channels_last(x), _channels_last(grad), padding, *other))


def _sum(pairs: tuple[Pair, ...], padding: int, turned: bool) -> Tensor:
    (x, weight), (x1, weight1) = _two(pairs)
    other = _maybe_channels_last(x1), None if weight1 is None else weight1.contiguous()
    return cast("Tensor", _conv(_channels_last(x), weight.contiguous(), padding, turned, *other))


def _two(pairs: tuple[Pair, ...]) -> tuple[Pair, Pair | tuple[None, None]]:
    first, *second = pairs
    given = {f"operand {i}": t for i, t in enumerate(t for pair in pairs for t in pair)}
    check_same_dtype_and_device("winograd_conv", **given)
    return first, second[0] if second else (None, None)


def _maybe_channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else _channels_last(x)
