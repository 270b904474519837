"""A layer of StyleGAN2 in one op.

Modulated 3x3 convolution, demodulation, FIR filter, noise, bias, leaky ReLU, gain, clamp.

Symbols: N images, C channels in, K channels out, H x W input, M rows of noise.
Derivation and traffic: docs/ops/styled_conv.md.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from kdistill.backends.arguments import Activation
from kdistill.backends.reference.styled_conv import demodulation
from kdistill.ops import _layout
from kdistill.ops._registry import fast_apply, register
from kdistill.ops.fir_bias_act import fir_bias_act

GRAD_ORDER = 2


def _declare_fwd(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    taps: Tensor | None,
    act: Activation,
    keep: bool,
) -> _layout.Signature:
    n, c, h, w = _layout.sizes_of(x, "x [N, C, H, W]")
    kernels = "use torch.nn.functional.conv2d for other kernels"
    k, *_ = _layout.sizes_of(weight, "weight [K, C, 3, 3]", kernels)
    sides = f"{list(x.shape)} and K = {k}"
    _layout.require(
        min(c, h, w, k) >= 1, "channels, rows and columns", sides, "leave empty layers out"
    )
    _layout.require_activation(*act)
    up, more = (1, 0) if taps is None else (2, 1)
    result = _layout.feature_maps(n, k, up * h, up * w)
    y = _layout.feature_maps(n, k, up * h + more, up * w + more) if keep else _layout.array(0)
    inputs = (
        _layout.feature_maps(n, c, h, w),
        _layout.array(k, c, 3, 3, hint=kernels),
        _layout.array(n, c, hint="expand it"),
        _layout.array(k, hint="expand it"),
        _layout.noise_of(result, noise),
        _layout.array(4, hint="filter after an op without taps"),
    )
    return _layout.Signature(inputs, (result, y, _layout.array(n, k)))


def _declare_bwd(
    grad: Tensor, out: Tensor, y: Tensor, scale: Tensor, x: Tensor, weight: Tensor, styles: Tensor,
    taps: Tensor | None, act: Activation, noise_rows: int, wants_weight: bool,
) -> _layout.Signature:  # fmt: skip
    (image, filters, factors, channels, _, fir), (result, before, demodulated) = _declare_fwd(
        x, weight, styles, scale, None, taps, act, True
    )
    n, _, *size = result.sizes
    _layout.require(
        noise_rows in (0, 1, n), f"noise_rows 0, 1 or {n}", noise_rows, "pass those of noise"
    )
    dweight = filters if wants_weight else _layout.array(0)
    return _layout.Signature(
        (result, result, before, demodulated, image, filters, factors, fir),
        (image, dweight, factors, channels, _layout.array(noise_rows, *size)),
    )


# keep: return y, the feature maps before scale, which the backward needs; taps: of a layer that
# doubles the size, whose y is [N, K, 2H + 1, 2W + 1]; scale: the demodulation [N, K]; noise_rows:
# M, or 0 where the gradient of the noise is not wanted
_fwd = register("styled_conv", _declare_fwd, outputs=3)
_bwd = register("styled_conv_bwd", _declare_bwd, outputs=5)


class _StyledConv(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, act = inputs
        return cast("tuple[Tensor, Tensor, Tensor]", _fwd(*tensors, *act, True))

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        ctx.mark_non_differentiable(*output[1:])
        *tensors, ctx.act = inputs
        ctx.save_for_backward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        out, y, scale, *inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():  # being differentiated again
            return (*_differentiable(grad, inputs, ctx.act, wanted), None, None)
        x, weight, styles, _, noise, taps = inputs
        saved = (_layout.channels_last(grad), out, y, scale, x, weight, styles, taps)
        noise_rows = noise.shape[0] if wanted[4] else 0
        grads = _bwd(*saved, *ctx.act, noise_rows, wanted[1])
        return (*(g if w else None for g, w in zip(grads, wanted, strict=True)), None, None)


def _differentiable(
    grad: Tensor, inputs: list[Tensor | None], act: Activation, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Return the gradients as functions of ``grad`` and the inputs.

    By the library's convolution between two ``fir_bias_act``.
    """
    # views: where one input was made of another, its own gradient must not hold the way through the
    # other
    views = [None if t is None else t.view_as(t) for t in inputs]
    for position, view in enumerate(views[: len(wanted)]):
        # a vjp of torch.func, outside of its level
        if view is not None and wanted[position] and not view.requires_grad:
            views[position] = view.detach().requires_grad_()
    x, weight, styles, bias, noise, taps = cast("list[Tensor]", views)
    scale = demodulation(weight, styles)
    modulated = fir_bias_act(x, styles)
    if taps is None:
        y = functional.conv2d(modulated, weight, padding=1)
    else:
        y = functional.conv_transpose2d(modulated, weight.transpose(0, 1), stride=2)
    out = fir_bias_act(y, scale, bias, noise, taps, slope=act.slope, gain=act.gain, clamp=act.limit)
    leaves = [t for t, wants in zip(views, wanted, strict=False) if wants]  # the taps are no leaf
    grads = iter(torch.autograd.grad(out, cast("list[Tensor]", leaves), grad, create_graph=True))
    return [next(grads) if wants else None for wants in wanted]


_apply = fast_apply(_StyledConv)


def styled_conv(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor | None = None,
    *,
    taps: Tensor | None = None,
    slope: float = 1.0,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """Return ``clamp(gain * leaky_relu(conv(x * styles) * scale + noise + bias))``.

    It is a layer of StyleGAN2, on a CPU by Winograd's algorithm.  The demodulation is ``scale[n, k]
    = rsqrt(sum (weight[k] * styles[n])^2 + 1e-8)``.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.  Channels-last memory is read as it is, anything
            else is converted first.
        weight: ``[K, C, 3, 3]``; the convolution is a cross-correlation with one zero around ``x``.
        styles: ``[N, C]``, factors of the channels of ``x``.
        bias: ``[K]``.
        noise: ``[M, h, w]`` with M = 1 or N, the same for all channels, or None.
        taps: None, or ``[4]``: the convolution is a transposed one of stride 2 and the filter of
            ``fir_bias_act`` follows, so that the result has twice the rows and columns.  A
            constant.
        slope: Factor of negative values, 0 to 1; 1 is no nonlinearity.
        gain: Factor of the result, positive.
        clamp: Largest magnitude of the result, positive, or None.

    Returns:
        ``[N, K, h, w]``, channels-last, with ``(h, w) = (H, W)``, or ``(2H, 2W)`` with taps.
        Differentiable twice in all other tensors; the derivative at 0 is ``gain * slope``, at the
        clamp and beyond 0.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: ``taps`` requires grad.
        ConfigError: ``slope``, ``gain`` or ``clamp`` is out of range.

    Cost: ``72*T*C*K`` flops forward with T tiles of 4x4 pixels of ``x``, ``162*T*C*K`` with taps,
        and as many for each of the gradients in ``x`` and ``weight``; saves ``x``, the result and
        the feature maps before the demodulation.  The rounding error is about five times that of
        the plain sum.

    References: Karras et al., Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020,
        section 2 and appendix B; Lavin and Gray, Fast Algorithms for Convolutional
        Neural Networks, CVPR 2016.
    """
    _layout.require_constant("styled_conv", taps=taps)
    act = _layout.activation(slope, gain, clamp)
    tensors = (_layout.channels_last(x), *_layout.contiguous(weight, styles, bias, noise, taps))
    if _layout.records_graph(x, weight, styles, bias, noise):
        return cast("Tensor", _apply(*tensors, act)[0])
    return cast("Tensor", _fwd(*tensors, *act, False)[0])
