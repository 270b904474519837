"""The alias-free nonlinearity of a StyleGAN3 layer in one pass: upsample, activate, downsample.

Symbols: N images, C channels, H x W input, R x S upsampled, h x w result, T taps.
Derivation and traffic: docs/ops/filtered_lrelu.md.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from kdistill.backends.arguments import Resampling
from kdistill.backends.reference.filtered_lrelu import filtered_lrelu_bwd as _differentiable_bwd
from kdistill.errors import ConfigError
from kdistill.ops._layout import (
    Layout,
    Signature,
    activation,
    array,
    channels_last,
    contiguous,
    feature_maps,
    records_graph,
    require,
    require_activation,
    require_constant,
    sizes_of,
)
from kdistill.ops._registry import fast_apply, register

GRAD_ORDER = 2


def _layouts(
    sizes: Sequence[int], up_taps: Tensor | None, down_taps: Tensor | None, how: Resampling
) -> tuple[Layout, Layout, Layout, Layout, Layout]:
    """Return the layouts of input, mask, both filters and result for an input ``[N, C, H, W]``."""
    factors, padding = (how.up, how.down), how.padding
    require(
        min(factors) >= 1 and len(padding) == 4,
        "up and down from 1 on and padding (left, right, above, below)",
        f"{how.up}, {how.down} and {padding}",
        "give whole factors and four numbers",
        ConfigError,
    )
    require_activation(how.slope, how.gain, how.limit)
    for taps in (up_taps, down_taps):
        count = 1 if taps is None else sizes_of(taps, "taps [T]", "filter outside the op")[0]
        require(count >= 1, "taps [T] with T >= 1", [0], "leave empty filters out")
    g = how.geometry(sizes, up_taps, down_taps)
    # what cropping leaves of the upsampled feature maps
    rows = g.height * g.up + min(padding[2], 0) + min(padding[3], 0)
    columns = g.width * g.up + min(padding[0], 0) + min(padding[1], 0)
    require(
        min(g.height, g.width, g.h, g.w) >= 1 and min(rows, columns) >= 0,
        "upsampled feature maps that hold the taps",
        f"{g.rows} x {g.columns} from x {list(sizes)} and padding {padding}",
        "pad more or crop less",
    )
    mask = array(*g.mask, dtype=torch.uint8)
    filters = array(g.up_taps), array(g.down_taps)
    return feature_maps(*sizes), mask, *filters, feature_maps(g.n, g.c, g.h, g.w)


def _declare_fwd(
    x: Tensor,
    bias: Tensor | None,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    how: Resampling,
    keep: bool,
) -> Signature:
    sizes = sizes_of(x, "x [N, C, H, W]")
    image, mask, *filters, result = _layouts(sizes, up_taps, down_taps, how)
    channels = array(sizes[1], hint="pass one number per channel")
    mask = mask if keep else array(0, dtype=torch.uint8)
    return Signature((image, channels, *filters), (result, mask))


def _declare_bwd(
    grad: Tensor,
    mask: Tensor,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    size: list[int],
    how: Resampling,
) -> Signature:
    n, c, *_ = sizes_of(grad, "grad [N, C, h, w]")
    require(len(size) == 2, "the size H, W of the input", size, "pass both")
    image, codes, *filters, result = _layouts((n, c, *size), up_taps, down_taps, how)
    return Signature((result, codes, *filters), (image, array(c)))


# size: H and W of x; mask [N, R, ceil(S / 4), C]: two bits of every upsampled value (1: positive,
# 2: clamped), or empty, [0], where keep is false
_fwd = register("filtered_lrelu", _declare_fwd, outputs=2)
_bwd = register("filtered_lrelu_bwd", _declare_bwd, outputs=2)


class _FilteredLrelu(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, how = inputs
        return cast("tuple[Tensor, Tensor]", _fwd(*tensors, *how, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, _, up_taps, down_taps, ctx.how = inputs
        ctx.size = list(x.shape[2:])
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], up_taps, down_taps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = (channels_last(grad), *ctx.saved_tensors, ctx.size)
        if torch.is_grad_enabled():  # being differentiated again; the mask has no derivative
            dx, dbias = _differentiable_bwd(*saved, ctx.how)  # type: ignore[call-arg]
        else:
            dx, dbias = _bwd(*saved, *ctx.how)
        return dx, dbias if ctx.needs_input_grad[1] else None, None, None, None


_apply = fast_apply(_FilteredLrelu)


def filtered_lrelu(
    x: Tensor,
    bias: Tensor | None = None,
    up_taps: Tensor | None = None,
    down_taps: Tensor | None = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """Return ``downsample(clamp(gain * leaky_relu(upsample(x + bias))))``.

    The upsampled feature maps are never in memory as a whole.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.  Channels-last memory is read as it is, anything
            else is converted first.
        bias: ``[C]``, or None.
        up_taps: ``[T]``, the filter of the upsampling: after each sample come ``up - 1`` zeros, the
            result is padded and filtered along both axes, a true convolution, times ``up^2``.
            A constant.  None filters nothing.
        down_taps: ``[T]``, the filter of the downsampling, of whose results every ``down``-th
            remains, the first one included.
        up: Factor of the upsampling.
        down: Factor of the downsampling.
        padding: Zeros left, right, above and below, on the upsampled feature maps; negative numbers
            crop.
        slope: Factor of negative values, 0 to 1; 1 is no nonlinearity.
        gain: Factor after the nonlinearity, positive.
        clamp: Largest magnitude between the filters, positive, or None.

    Returns:
        ``[N, C, h, w]``, channels-last.  Differentiable twice in ``x`` and ``bias``; the derivative
        of the nonlinearity at 0 is ``gain * slope``, at the clamp and beyond 0.

    Raises:
        ShapeError: A shape, dtype or device does not fit, or the upsampled feature maps are
            smaller than the filter that follows.
        ConfigError: A factor, ``padding``, ``slope``, ``gain`` or ``clamp`` is out of range.
        NotDifferentiableError: Taps require grad.

    Cost: per upsampled value ``2 * T_up / up * (1 + 1 / up) + 2 * T_down / down * (1 + 1 / down) +
        6`` flops or so, forward and again backward; reads ``x`` and writes the result (backward:
        reads the gradient and writes the gradient of ``x``); saves two bits of every upsampled
        value.

    References: Karras et al., Alias-Free Generative Adversarial Networks, NeurIPS 2021, section 3
        and appendix D.
    """
    how = Resampling(up, down, [int(p) for p in padding], *activation(slope, gain, clamp))
    require_constant("filtered_lrelu", up_taps=up_taps, down_taps=down_taps)
    tensors = (channels_last(x), *contiguous(bias, up_taps, down_taps))
    if records_graph(x, bias):
        return cast("Tensor", _apply(*tensors, how)[0])
    return cast("Tensor", _fwd(*tensors, *how, False)[0])
