"""Instance normalisation, ReLU and 2x2 average pooling as one op: half of a student's time on a CPU.

Symbols: N images, C channels, H x W pixels, G rows of affine parameters.  Derivation and traffic:
    docs/ops/norm_act_pool.md.
"""

from typing import Any, cast

import torch
from torch import Tensor

from kdistill.backends.reference.norm_act_pool import differentiable_bwd as _differentiable_bwd
from kdistill.errors import ConfigError, ShapeError
from kdistill.ops._layout import Layout, array, maps, require, sizes_of
from kdistill.ops._registry import check_same_dtype_and_device, plain, register

GRAD_ORDER = 2


def _empty(like: Tensor, *sizes: int) -> Tensor:
    return torch.empty(
        sizes, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _fake_fwd(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    return _empty(x, n, c, h // 2, w // 2), x.new_empty((n, c)), x.new_empty((n, c))


def _fake_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x, *x.shape), torch.empty_like(weight), torch.empty_like(bias)


def _forms(x: Tensor, weight: Tensor) -> tuple[Layout, Layout, Layout, Layout]:
    """Return the layouts of the maps that come in and go out, of the parameters and of the statistics."""
    n, c, h, w = sizes_of(x, "x [N, C, H, W]")
    g, _ = sizes_of(weight, "weight [G, C]")
    require(c >= 1 and min(h, w) >= 2, "x [N, C, H, W] with C >= 1 and H, W >= 2", list(x.shape))
    require(g >= 1 and n % g == 0, "weight [G, C] with N divisible by G", f"N = {n} and G = {g}")
    return maps(n, c, h, w), maps(n, c, h // 2, w // 2), array(g, c), array(n, c)


def _layouts_fwd(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Layout, ...]:
    image, _, row, _ = _forms(x, weight)
    return image, row, row


def _layouts_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Layout, ...]:
    image, pooled, row, moment = _forms(x, weight)
    return pooled, image, row, row, moment, moment


def _layouts_tangent(
    x: Tensor,
    x_dot: Tensor,
    weight: Tensor,
    weight_dot: Tensor,
    bias: Tensor,
    bias_dot: Tensor,
    eps: float,
) -> tuple[Layout, ...]:
    image, _, row, _ = _forms(x, weight)
    return image, image, row, row, row, row


def _layouts_bwd_tangent(
    grad: Tensor, grad_dot: Tensor, x: Tensor, x_dot: Tensor, weight: Tensor, weight_dot: Tensor, bias: Tensor,
    mean: Tensor, rstd: Tensor, x_dot_mean: Tensor, x_dot_proj: Tensor,
) -> tuple[Layout, ...]:  # fmt: skip
    image, pooled, row, moment = _forms(x, weight)
    return pooled, pooled, image, image, row, row, row, moment, moment, moment, moment


# x, grad: channels-last; weight, bias: [G, C]; returns out (channels-last), mean [N, C], rstd [N,
# C]
_fwd = register(
    "norm_act_pool",
    "(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)",
    fake=_fake_fwd,
    layouts=_layouts_fwd,
)
_bwd = register(
    "norm_act_pool_bwd",
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd) -> (Tensor, "
    "Tensor, Tensor)",
    fake=_fake_bwd,
    layouts=_layouts_bwd,
)
_plain_fwd, _plain_bwd = (
    plain("norm_act_pool", _layouts_fwd),
    plain("norm_act_pool_bwd", _layouts_bwd),
)
_plain_tangent = plain("norm_act_pool_tangent", _layouts_tangent)
_plain_bwd_tangent = plain("norm_act_pool_bwd_tangent", _layouts_bwd_tangent)
_Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _NormActPool(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, rstd = _fwd(x, weight, bias, eps)
        return out, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if (
            torch.is_grad_enabled()
        ):  # being differentiated again: from the inputs, never from what the kernel saved
            return *_differentiable_bwd(grad, x, weight, bias, ctx.eps), None
        return *_bwd(_channels_last(grad), x, weight, bias, mean, rstd), None


def norm_act_pool(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Return ``avg_pool2d(relu((x - mean) * rstd * weight + bias), 2)``, with ``mean`` and ``rstd`` of each image and channel.

    The variance is biased, as in ``torch.nn.InstanceNorm2d``: ``rstd = 1 / sqrt(mean((x - mean)^2)
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
        (backward: reads ``x`` and the gradient, writes the gradient of ``x``), with a second look
        at ``x`` from the cache; saves ``x`` and ``2*N*C`` elements.

    References: Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016; the block of the
        field's ConvNet student (Zhao,
    Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021).
    """
    if x.ndim != 4 or x.shape[1] < 1 or x.shape[2] < 2 or x.shape[3] < 2:
        raise ShapeError(
            "norm_act_pool: expected x [N, C, H, W] with C >= 1 and H, W >= 2, got "
            f"{list(x.shape)}; "
            "use larger images or a student with fewer blocks"
        )
    n, c = x.shape[:2]
    if weight.shape != bias.shape or weight.ndim not in (1, 2) or weight.shape[-1] != c:
        raise ShapeError(
            f"norm_act_pool: expected weight and bias [{c}] or [G, {c}], got {list(weight.shape)} "
            f"and {list(bias.shape)}; "
            "pass one value per channel"
        )
    if weight.ndim == 2 and (weight.shape[0] == 0 or n % weight.shape[0]):
        raise ShapeError(
            f"norm_act_pool: expected {n} images to be divisible by the rows of weight, got "
            f"{weight.shape[0]}; "
            "give every row the same number of images"
        )
    check_same_dtype_and_device("norm_act_pool", x=x, weight=weight, bias=bias)
    if not eps > 0:
        raise ConfigError(f"norm_act_pool: expected eps > 0, got {eps}; the usual value is 1e-5")
    needs_graph = torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or bias.requires_grad
    )
    forward = (
        _NormActPool.apply if needs_graph else _fwd
    )  # the detour through autograd costs more than a small block
    return cast("Tensor", forward(_channels_last(x), _rows(weight), _rows(bias), eps)[0])


def _rows(parameter: Tensor) -> Tensor:
    return (parameter if parameter.ndim == 2 else parameter[None]).contiguous()


def norm_act_pool_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(out, mean [N, C], rstd [N, C])`` without an autograd graph; arguments as ``norm_act_pool``.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.
    """
    return cast(
        "tuple[Tensor, Tensor, Tensor]",
        _plain_fwd(_channels_last(x), _rows(weight), _rows(bias), eps),
    )


def norm_act_pool_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients ``(dx, dweight [G, C], dbias [G, C])`` without an autograd graph; G is 1 for a weight ``[C]``.

    ``mean`` and ``rstd`` come from ``norm_act_pool_fwd`` on the same inputs.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.
    """
    found = _plain_bwd(
        _channels_last(grad), _channels_last(x), _rows(weight), _rows(bias), mean, rstd
    )
    return cast("tuple[Tensor, Tensor, Tensor]", found)


def norm_act_pool_tangent(
    x: Tensor,
    x_dot: Tensor,
    weight: Tensor,
    weight_dot: Tensor,
    bias: Tensor,
    bias_dot: Tensor,
    eps: float = 1e-5,
) -> _Six:
    """Return ``norm_act_pool_fwd`` and its derivative in the direction of the arguments ``*_dot``, in one pass.

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

    Cost: 19 flops per element of ``x``; reads ``x`` and ``x_dot``, with a second look from the
        cache, and writes the results.

    References: Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation 6, 1994;
        derivation of these formulas in
    docs/ops/norm_act_pool.md.
    """
    rows = (_rows(p) for p in (weight, weight_dot, bias, bias_dot))
    return cast("_Six", _plain_tangent(_channels_last(x), _channels_last(x_dot), *rows, eps))


def norm_act_pool_bwd_tangent(
    grad: Tensor, grad_dot: Tensor, x: Tensor, x_dot: Tensor, weight: Tensor, weight_dot: Tensor, bias: Tensor,
    mean: Tensor, rstd: Tensor, x_dot_mean: Tensor, x_dot_proj: Tensor,
) -> _Six:  # fmt: skip
    """Return ``norm_act_pool_bwd`` and its derivative in the direction of the arguments ``*_dot``, in one pass.

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

    Cost: 30 flops per element of ``x``; reads ``x``, ``x_dot``, ``grad`` and ``grad_dot``, with a
        second look from the cache, and writes ``dx`` and ``dx_dot``; ``4*N*C`` elements of scratch.
    """
    images = (_channels_last(t) for t in (grad, grad_dot, x, x_dot))
    rows = (_rows(p) for p in (weight, weight_dot, bias))
    return cast("_Six", _plain_bwd_tangent(*images, *rows, mean, rstd, x_dot_mean, x_dot_proj))
