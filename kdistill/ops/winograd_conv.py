"""3x3 convolution by Winograd's F(4x4, 3x3), its gradients, and sums of two of them, in one pass.

    y = A' [ (G w G') * (B' x B) ] A

For the engine alone: nothing here is differentiable.
Derivation and error: docs/ops/winograd_conv.md.

Symbols: N images, C channels in, K channels out, H x W input, h x w result, p padding,
T = N * ceil(h/4) * ceil(w/4) tiles.
"""

from typing import cast

from torch import Tensor

from kdistill.ops._layout import (
    Signature,
    array,
    channels_last,
    contiguous,
    feature_maps,
    require,
    sizes_of,
)
from kdistill.ops._registry import plain

GRAD_ORDER = 0

Pair = tuple[Tensor, Tensor]
_KERNELS = "use torch.nn.functional.conv2d for other kernels"


def _declare(
    x: Tensor, weight: Tensor, padding: int, turned: bool, x1: Tensor | None, weight1: Tensor | None
) -> Signature:
    n, c, h, w = sizes_of(x, "x [N, C, H, W]")
    k = sizes_of(weight, "weight [K, C, 3, 3]", _KERNELS)[1 if turned else 0]
    _require_sizes(c, h, w, k, padding)
    outs = (c, k) if turned else (k, c)
    filters = array(*outs, 3, 3, hint=_KERNELS)
    return Signature((feature_maps(n, c, h, w), filters) * 2)


def _declare_weight_grad(
    x: Tensor, grad: Tensor, padding: int, x1: Tensor | None, grad1: Tensor | None
) -> Signature:
    n, c, h, w = sizes_of(x, "x [N, C, H, W]")
    k = sizes_of(grad, "grad [N, K, h, w]")[1]
    _require_sizes(c, h, w, k, padding)
    result = feature_maps(n, k, h + 2 * padding - 2, w + 2 * padding - 2)
    return Signature((feature_maps(n, c, h, w), result) * 2)


def _require_sizes(c: int, h: int, w: int, k: int, padding: int) -> None:
    sizes = f"C = {c}, K = {k} and {h} x {w}"
    require(min(c, k, h, w) >= 1, "channels, rows and columns", sizes, "leave empty images out")
    require(padding >= 0, "padding >= 0", padding, "crop before the convolution")
    least = "at least 3x3 pixels with their padding"
    require(min(h, w) + 2 * padding >= 3, least, f"{[h, w]} and {padding}", "pad more")


_conv = plain("winograd_conv", _declare)
_weight_grad = plain("winograd_conv_weight_grad", _declare_weight_grad)


def winograd_conv(x: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
    """Return the 3x3 convolution (cross-correlation, stride 1) of ``x`` with ``weight``.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.  Channels-last memory is read as it is, anything
            else is converted first.
        weight: ``[K, C, 3, 3]``.
        padding: Zeros around the image, at least 0.

    Returns:
        ``[N, K, H + 2p - 2, W + 2p - 2]``, channels-last.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: ``72*T*C*K`` flops in the products, against ``18*N*h*w*C*K`` of the plain sum: a quarter
        where the sides of the result are multiples of 4; memory for a block of tiles of every
        thread and, below 8 MB, for all ``36*C*K`` transformed filters. The rounding error is about
        five times that of the plain sum.

    References: Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast
        Algorithms for Convolutional Neural Networks, CVPR 2016.
    """
    return winograd_conv_output((x, weight), padding=padding)


def winograd_conv_output(*pairs: Pair, padding: int) -> Tensor:
    """Return the sum of one or two convolutions, each of (x ``[N, C, H, W]``, weight)."""
    return _sum(pairs, padding, turned=False)


def winograd_conv_input_grad(*pairs: Pair, padding: int) -> Tensor:
    """Return the sum of the input's gradients for one or two (grad ``[N, K, h, w]``, weight)."""
    if (over := padding - 2) > 0:  # the outermost results are of zeros alone
        pairs = tuple((grad[:, :, over:-over, over:-over], weight) for grad, weight in pairs)
    return _sum(pairs, max(2 - padding, 0), turned=True)


def winograd_conv_weight_grad(*pairs: Pair, padding: int) -> Tensor:
    """Return the sum of the weight's gradients for one or two (x, grad ``[N, K, h, w]``)."""
    (x, grad), *second = ([channels_last(t) for t in pair] for pair in pairs)
    return cast("Tensor", _weight_grad(x, grad, padding, *(second[0] if second else (None, None))))


def _sum(pairs: tuple[Pair, ...], padding: int, turned: bool) -> Tensor:
    (x, weight), *second = ((channels_last(x), *contiguous(weight)) for x, weight in pairs)
    other = second[0] if second else (None, None)
    return cast("Tensor", _conv(x, weight, padding, turned, *other))
