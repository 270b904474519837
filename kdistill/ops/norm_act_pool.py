"""Instance normalisation, ReLU and 2x2 average pooling: half of a student's time on a CPU.

Symbols: N images, C channels, H x W pixels, G rows of affine parameters.
Derivation and traffic: docs/ops/norm_act_pool.md.
"""

from typing import Any, cast

import torch
from torch import Tensor

from kdistill.backends.reference.norm_act_pool import differentiable_bwd as _differentiable_bwd
from kdistill.errors import ConfigError
from kdistill.ops._layout import (
    Layout,
    Signature,
    array,
    channels_last,
    feature_maps,
    records_graph,
    require,
    sizes_of,
)
from kdistill.ops._registry import plain, register

GRAD_ORDER = 2


def _layouts(x: Tensor, weight: Tensor) -> tuple[Layout, Layout, Layout, Layout]:
    """Return the layouts of input, result, parameters and statistics."""
    form = "x [N, C, H, W] with C >= 1 and H, W >= 2"
    n, c, h, w = sizes_of(x, form)
    g, _ = sizes_of(weight, "weight [G, C]", "pass one value per channel")
    fewer = "use larger images or a student with fewer blocks"
    require(c >= 1 and min(h, w) >= 2, form, list(x.shape), fewer)
    same = "give every row the same number of images"
    require(g >= 1 and n % g == 0, "weight [G, C] with N divisible by G", f"N={n}, G={g}", same)
    row = array(g, c, hint="pass one value per channel")
    return feature_maps(n, c, h, w), feature_maps(n, c, h // 2, w // 2), row, array(n, c)


def _declare_fwd(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Signature:
    require(eps > 0, "eps > 0", eps, "the usual value is 1e-5", ConfigError)
    image, pooled, row, moment = _layouts(x, weight)
    return Signature((image, row, row), (pooled, moment, moment))


def _declare_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> Signature:
    image, pooled, row, moment = _layouts(x, weight)
    return Signature((pooled, image, row, row, moment, moment), (image, row, row))


def _declare_tangent(
    x: Tensor,
    x_dot: Tensor,
    weight: Tensor,
    weight_dot: Tensor,
    bias: Tensor,
    bias_dot: Tensor,
    eps: float,
) -> Signature:
    image, _, row, _ = _layouts(x, weight)
    return Signature((image, image, row, row, row, row))


def _declare_bwd_tangent(
    grad: Tensor, grad_dot: Tensor, x: Tensor, x_dot: Tensor, weight: Tensor, weight_dot: Tensor,
    bias: Tensor, mean: Tensor, rstd: Tensor, x_dot_mean: Tensor, x_dot_proj: Tensor,
) -> Signature:  # fmt: skip
    image, pooled, row, moment = _layouts(x, weight)
    return Signature((pooled, pooled, image, image, row, row, row, *[moment] * 4))


_fwd = register("norm_act_pool", _declare_fwd, outputs=3)
_bwd = register("norm_act_pool_bwd", _declare_bwd, outputs=3)
_SAVED = "pass inputs and results of the forward"
_plain_fwd = plain("norm_act_pool", _declare_fwd, _SAVED)
_plain_bwd = plain("norm_act_pool_bwd", _declare_bwd, _SAVED)
_plain_tangent = plain("norm_act_pool_tangent", _declare_tangent, _SAVED)
_plain_bwd_tangent = plain("norm_act_pool_bwd_tangent", _declare_bwd_tangent, _SAVED)
_Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class _NormActPool(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor, Tensor]", _fwd(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, mean, rstd = ctx.saved_tensors
        # being differentiated again: from the inputs, never from what the kernel saved
        if torch.is_grad_enabled():
            return *_differentiable_bwd(grad, *inputs, ctx.eps), None  # type: ignore[call-arg]
        return *_bwd(channels_last(grad), *inputs, mean, rstd), None


def norm_act_pool(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Return ``avg_pool2d(relu((x - mean) * rstd * weight + bias), 2)``.

    The statistics ``mean`` and ``rstd`` are those of each image and channel.  The variance is
    biased, as in ``torch.nn.InstanceNorm2d``: ``rstd = 1 / sqrt(mean((x - mean)^2)
    + eps)``.

    Args:
        x: ``[N, C, H, W]`` with C >= 1 and H, W >= 2, float32 or float64.  An odd last row or
            column counts in the statistics and is not pooled.  Channels-last memory is read as it
            is, anything else is converted first.
        weight: ``[C]``, or ``[G, C]`` with N divisible by G: image n uses row ``n // (N // G)``
            (one row per student).
        bias: Like ``weight``.
        eps: Added to the variance; positive, so that a constant channel gives ``relu(bias)``.

    Returns:
        ``[N, C, H // 2, W // 2]``, channels-last.  Differentiable twice in ``x``, ``weight`` and
        ``bias``; the gradient at an activation of exactly 0 is 0.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        ConfigError: ``eps`` is not positive.

    Cost: 9 flops per element of ``x`` forward, 15 backward; reads ``x`` and writes the result
        (backward: reads ``x`` and the gradient, writes the gradient of ``x``), a second time
        from the cache; saves ``x`` and ``2*N*C`` elements.

    References: Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016; the block of the
        field's ConvNet student (Zhao, Mopuri and Bilen, Dataset Condensation with Gradient
        Matching, ICLR 2021).
    """
    # the detour through autograd costs more than a small block
    forward = _NormActPool.apply if records_graph(x, weight, bias) else _fwd
    return cast("Tensor", forward(channels_last(x), _rows(weight), _rows(bias), eps)[0])


def _rows(parameter: Tensor) -> Tensor:
    return (parameter if parameter.ndim == 2 else parameter[None]).contiguous()


def norm_act_pool_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(out, mean [N, C], rstd [N, C])`` of ``norm_act_pool`` without an autograd graph.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.
    """
    return cast(
        "tuple[Tensor, Tensor, Tensor]",
        _plain_fwd(channels_last(x), _rows(weight), _rows(bias), eps),
    )


def norm_act_pool_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients ``(dx, dweight [G, C], dbias [G, C])`` without an autograd graph.

    G is 1 for a weight ``[C]``.  ``mean`` and ``rstd`` come from ``norm_act_pool_fwd`` on the same
    inputs.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.
    """
    grads = _plain_bwd(
        channels_last(grad), channels_last(x), _rows(weight), _rows(bias), mean, rstd
    )
    return cast("tuple[Tensor, Tensor, Tensor]", grads)


def norm_act_pool_tangent(
    x: Tensor,
    x_dot: Tensor,
    weight: Tensor,
    weight_dot: Tensor,
    bias: Tensor,
    bias_dot: Tensor,
    eps: float = 1e-5,
) -> _Six:
    """Return ``norm_act_pool_fwd`` and its derivative in the direction ``*_dot``, in one pass.

    For Pearlmutter's forward-over-reverse products, with ``norm_act_pool_bwd_tangent``.  Without an
    autograd graph.

    Args:
        x: ``[N, C, H, W]``, as in ``norm_act_pool``.
        x_dot: The direction in ``x``, of its shape.  Channels-last memory is read as it is,
            anything else is converted first.
        weight: ``[C]``, or ``[G, C]``: image n uses row ``n // (N // G)``.
        weight_dot: The direction in ``weight``, of its shape.
        bias: Like ``weight``.
        bias_dot: Like ``weight``.
        eps: Added to the variance; positive.

    Returns:
        ``(out, out_dot [N, C, H // 2, W // 2], mean, rstd, x_dot_mean, x_dot_proj [N, C])``.
        ``out``, ``mean`` and ``rstd`` are those of ``norm_act_pool_fwd``, on the CPU to the bit;
        ``x_dot_mean`` is the mean of ``x_dot`` and ``x_dot_proj`` that of ``x_dot * (x - mean) *
        rstd`` of each image and channel, for the backward pass.  A pixel whose activation is 0 has
        no part in ``out_dot``.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: 19 flops per element of ``x``; reads ``x`` and ``x_dot``, a second time from the
        cache, and writes the results.

    References: Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation 6, 1994;
        derivation of these formulas in docs/ops/norm_act_pool.md.
    """
    rows = (_rows(p) for p in (weight, weight_dot, bias, bias_dot))
    return cast("_Six", _plain_tangent(channels_last(x), channels_last(x_dot), *rows, eps))


def norm_act_pool_bwd_tangent(
    grad: Tensor, grad_dot: Tensor, x: Tensor, x_dot: Tensor, weight: Tensor, weight_dot: Tensor,
    bias: Tensor, mean: Tensor, rstd: Tensor, x_dot_mean: Tensor, x_dot_proj: Tensor,
) -> _Six:  # fmt: skip
    """Return ``norm_act_pool_bwd`` and its derivative in the direction ``*_dot``, in one pass.

    Without an autograd graph.  The mask of the ReLU does not move with ``bias``, so its direction
    is not needed.

    Args:
        grad: The gradient of ``out``, ``[N, C, H // 2, W // 2]``.
        grad_dot: Its derivative in the same direction.
        x: As in ``norm_act_pool_tangent``, and so are ``x_dot``, ``weight``, ``weight_dot`` and
            ``bias``.
        x_dot: As in ``norm_act_pool_tangent``.
        weight: As in ``norm_act_pool_tangent``.
        weight_dot: As in ``norm_act_pool_tangent``.
        bias: As in ``norm_act_pool_tangent``.
        mean: From ``norm_act_pool_tangent`` on the same inputs, ``[N, C]``, as the three that
            follow.
        rstd: As in ``norm_act_pool_tangent``.
        x_dot_mean: As in ``norm_act_pool_tangent``.
        x_dot_proj: As in ``norm_act_pool_tangent``.

    Returns:
        ``(dx, dx_dot, dweight, dweight_dot, dbias, dbias_dot)``: the gradients in ``x [N, C, H,
        W]`` and in ``weight`` and ``bias [G, C]`` (G is 1 for a weight ``[C]``), each before its
        derivative.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: 30 flops per element of ``x``; reads ``x``, ``x_dot``, ``grad`` and ``grad_dot``, a
        second time from the cache, and writes ``dx`` and ``dx_dot``; ``4*N*C`` elements of scratch.
    """
    images = (channels_last(t) for t in (grad, grad_dot, x, x_dot))
    rows = (_rows(p) for p in (weight, weight_dot, bias))
    return cast("_Six", _plain_bwd_tangent(*images, *rows, mean, rstd, x_dot_mean, x_dot_proj))
