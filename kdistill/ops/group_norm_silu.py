"""Group normalisation, scale and shift by an embedding, and SiLU: between a U-Net's convolutions.

Symbols: N images, C channels, H x W pixels, G groups.
Derivation and traffic: docs/ops/group_norm_silu.md.
"""

from typing import Any, cast

import torch
from torch import Tensor

from kdistill.backends.reference.group_norm_silu import differentiable_bwd as _differentiable_bwd
from kdistill.errors import ConfigError
from kdistill.ops._layout import (
    Layout,
    Signature,
    array,
    channels_last,
    contiguous,
    feature_maps,
    records_graph,
    require,
    sizes_of,
)
from kdistill.ops._registry import fast_apply, register

GRAD_ORDER = 2


def _layouts(x: Tensor, groups: int) -> tuple[Layout, Layout, Layout, Layout]:
    """Return the layouts of feature maps, parameters, modulation and statistics."""
    n, c, h, w = sizes_of(x, "x [N, C, H, W]")
    sides = list(x.shape)
    require(min(c, h, w) >= 1, "x [N, C, H, W] with C, H, W >= 1", sides, "leave it out")
    divides = groups >= 1 and c % groups == 0
    require(divides, "C divisible by groups", f"C={c}, groups={groups}", "use fewer groups")
    row = array(c, hint="pass one value per channel")
    modulation = array(n, 2 * c, hint="pass a scale, then a shift for every channel")
    return feature_maps(n, c, h, w), row, modulation, array(n, groups)


def _declare_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None, groups: int, eps: float
) -> Signature:
    require(eps > 0, "eps > 0", eps, "the usual value is 1e-5", ConfigError)
    image, row, rows, moment = _layouts(x, groups)
    return Signature((image, row, row, rows), (image, moment, moment))


def _declare_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    modulation: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> Signature:
    image, row, rows, moment = _layouts(x, sizes_of(mean, "mean [N, G]")[1])
    outputs = (image, row, row, array(0) if modulation is None else rows)
    return Signature((image, image, row, row, rows, moment, moment), outputs)


_fwd = register("group_norm_silu", _declare_fwd, outputs=3)
_bwd = register("group_norm_silu_bwd", _declare_bwd, outputs=4)


class _GroupNormSilu(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor, Tensor]", _fwd(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.groups, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, mean, rstd = ctx.saved_tensors
        # being differentiated again: from the inputs, never from what the kernel saved
        if torch.is_grad_enabled():
            options = (ctx.groups, ctx.eps)
            grads = _differentiable_bwd(grad, *inputs, *options)  # type: ignore[call-arg]
        else:
            grads = _bwd(channels_last(grad), *inputs, mean, rstd)
        dmodulation = None if inputs[3] is None else grads[3]
        return *grads[:3], dmodulation, None, None


_apply = fast_apply(_GroupNormSilu)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    modulation: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
) -> Tensor:
    """Return ``silu((1 + scale) * group_norm(x, groups, weight, bias) + shift)``.

    Args:
        x: ``[N, C, H, W]`` with C, H, W >= 1, float32 or float64.  Channels-last memory is read as
            it is, anything else is converted first.
        weight: ``[C]``.
        bias: ``[C]``.
        modulation: ``[N, 2C]``, the scale of every channel and then the shift; None for neither.
        groups: G, a divisor of C; mean and variance (biased) are those of an image's group.
        eps: Added to the variance; positive.

    Returns:
        ``[N, C, H, W]``, channels-last.  Differentiable twice in ``x``, ``weight``, ``bias`` and
        ``modulation``.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        ConfigError: ``eps`` is not positive.

    Cost: about 25 flops per element forward, 40 backward; reads ``x`` and writes the result
        (backward: reads ``x`` and the gradient, writes the gradient of ``x``), an image a second
        and a third time from the cache; saves ``x`` and ``2*N*G`` elements.

    References: Wu and He, Group Normalization, ECCV 2018; Dhariwal and Nichol, Diffusion Models
        Beat GANs on Image Synthesis, NeurIPS 2021 (scale and shift).
    """
    forward = _apply if records_graph(x, weight, bias, modulation) else _fwd
    tensors = (channels_last(x), *contiguous(weight, bias, modulation))
    return cast("Tensor", forward(*tensors, groups, eps)[0])
