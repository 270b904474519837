"""A layer of StyleGAN2 in one op: modulated 3x3 convolution, demodulation, FIR, noise, bias, leaky ReLU, gain, clamp.

Symbols: N images, C channels in, K channels out, H x W the map, M rows of noise.
Derivation and traffic: docs/ops/styled_conv.md.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from kdistill.backends.reference.styled_conv import demodulation
from kdistill.errors import ConfigError, NotDifferentiableError, ShapeError
from kdistill.ops._layout import Layout, array, maps, require, sizes_of
from kdistill.ops._registry import check_same_dtype_and_device, fast_apply, register
from kdistill.ops.fir_bias_act import fir_bias_act

GRAD_ORDER = 2


def _empty(like: Tensor, *sizes: int) -> Tensor:
    return torch.empty(
        sizes, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _fake_fwd(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (n, _, h, w), k = x.shape, len(weight)
    up, more = (1, 0) if taps is None else (2, 1)
    y = _empty(x, n, k, up * h + more, up * w + more) if keep else x.new_empty(0)
    return _empty(x, n, k, up * h, up * w), y, x.new_empty((n, k))


def _fake_bwd(
    grad: Tensor,
    out: Tensor,
    y: Tensor,
    scale: Tensor,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
    noise_rows: int,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dweight = torch.empty_like(weight) if wants_weight else weight.new_empty(0)
    dnoise = x.new_empty((noise_rows, *out.shape[2:]))
    return _empty(x, *x.shape), dweight, torch.empty_like(styles), x.new_empty(len(weight)), dnoise


def _layouts_fwd(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
    keep: bool,
) -> tuple[Layout, ...]:
    n, c, h, w = sizes_of(x, "x [N, C, H, W]")
    k, *_ = sizes_of(weight, "weight [K, C, 3, 3]")
    require(min(c, h, w, k) >= 1, "channels, rows and columns", f"{list(x.shape)} and K = {k}")
    m, up = 1 if noise is None else len(noise), 1 if taps is None else 2
    require(m in (1, n), f"noise of 1 or {n} rows", m)
    return (
        maps(n, c, h, w),
        array(k, c, 3, 3),
        array(n, c),
        array(k),
        array(m, up * h, up * w),
        array(4),
    )


def _layouts_bwd(
    grad: Tensor,
    out: Tensor,
    y: Tensor,
    scale: Tensor,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
    noise_rows: int,
    wants_weight: bool,
) -> tuple[Layout, ...]:
    image, filters, of_styles, *_ = _layouts_fwd(
        x, weight, styles, scale, None, taps, slope, gain, limit, True
    )
    (n, _, h, w), k = image.sizes, len(weight)
    require(noise_rows in (0, 1, n), f"noise_rows 0, 1 or {n}", noise_rows)
    up, more = (1, 0) if taps is None else (2, 1)
    result = maps(n, k, up * h, up * w)
    return (
        result,
        result,
        maps(n, k, up * h + more, up * w + more),
        array(n, k),
        image,
        filters,
        of_styles,
        array(4),
    )


# x, y, grad, out: channels-last; limit: infinity for none; keep: return y, the map before scale,
# which the backward needs; taps: of a layer that doubles the size, whose y is [N, K, 2H + 1, 2W +
# 1]; scale: the demodulation [N, K]; noise_rows: M, or 0 where the noise's gradient is not wanted
_fwd = register(
    "styled_conv",
    "(Tensor x, Tensor weight, Tensor styles, Tensor bias, Tensor? noise, Tensor? taps, float "
    "slope, float gain,"
    " float limit, bool keep) -> (Tensor, Tensor, Tensor)",
    fake=_fake_fwd,
    layouts=_layouts_fwd,
)
_bwd = register(
    "styled_conv_bwd",
    "(Tensor grad, Tensor out, Tensor y, Tensor scale, Tensor x, Tensor weight, Tensor styles, "
    "Tensor? taps,"
    " float slope, float gain, float limit, int noise_rows, bool wants_weight) -> (Tensor, Tensor, "
    "Tensor, Tensor, Tensor)",
    fake=_fake_bwd,
    layouts=_layouts_bwd,
)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _StyledConv(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        styles: Tensor,
        bias: Tensor,
        noise: Tensor | None,
        taps: Tensor | None,
        slope: float,
        gain: float,
        limit: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return cast(
            "tuple[Tensor, Tensor, Tensor]",
            _fwd(x, weight, styles, bias, noise, taps, slope, gain, limit, True),
        )

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        ctx.mark_non_differentiable(*output[1:])
        *tensors, slope, gain, limit = inputs
        ctx.numbers = (slope, gain, limit)
        ctx.save_for_backward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        out, y, scale, *inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():  # being differentiated again
            return (*_differentiable(grad, inputs, ctx.numbers, wanted), None, None, None, None)
        x, weight, styles, _, noise, taps = inputs
        rows = noise.shape[0] if wanted[4] else 0
        found = _bwd(
            _channels_last(grad),
            out,
            y,
            scale,
            x,
            weight,
            styles,
            taps,
            *ctx.numbers,
            rows,
            wanted[1],
        )
        return (
            *(g if wants else None for g, wants in zip(found, wanted, strict=True)),
            None,
            None,
            None,
            None,
        )


def _differentiable(
    grad: Tensor, inputs: list[Tensor | None], numbers: tuple[float, ...], wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Return the gradients as functions of ``grad`` and the inputs, by the library's convolution between two ``fir_bias_act``."""
    # views: where one input was made of another, its own gradient must not hold the way through the
    # other
    views = [None if t is None else t.view_as(t) for t in inputs]
    for position, view in enumerate(views[: len(wanted)]):
        if (
            view is not None and wanted[position] and not view.requires_grad
        ):  # a vjp of torch.func, outside of its level
            views[position] = view.detach().requires_grad_()
    x, weight, styles, bias, noise, taps = cast("list[Tensor]", views)
    slope, gain, limit = numbers
    scale = demodulation(weight, styles)
    modulated = fir_bias_act(x, styles)
    if taps is None:
        y = functional.conv2d(modulated, weight, padding=1)
    else:
        y = functional.conv_transpose2d(modulated, weight.transpose(0, 1), stride=2)
    out = fir_bias_act(
        y,
        scale,
        bias,
        noise,
        taps,
        slope=slope,
        gain=gain,
        clamp=None if limit == math.inf else limit,
    )
    leaves = [t for t, wants in zip(views, wanted, strict=False) if wants]  # the taps are no leaf
    found = iter(torch.autograd.grad(out, cast("list[Tensor]", leaves), grad, create_graph=True))
    return [next(found) if wants else None for wants in wanted]


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
    """Return a StyleGAN2 layer, ``clamp(gain * leaky_relu(conv(x * styles) * scale + noise + bias))``, by Winograd on a CPU.

    The demodulation is ``scale[n, k] = rsqrt(sum (weight[k] * styles[n])^2 + 1e-8)``.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.  Channels-last memory is read as it is, anything
            else is converted first.
        weight: ``[K, C, 3, 3]``; the convolution is a cross-correlation with one zero around the
            map.
        styles: ``[N, C]``, factors of the map that comes in.
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
        the map before the demodulation.  The rounding error is about five times that of the plain
        sum.

    References: Karras et al., Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020,
        section 2 and appendix B; Lavin
    and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
    """
    if x.ndim != 4 or weight.ndim != 4 or tuple(weight.shape[1:]) != (x.shape[1], 3, 3):
        raise ShapeError(
            f"styled_conv: expected x [N, C, H, W] and weight [K, C, 3, 3], got {list(x.shape)} "
            f"and {list(weight.shape)}; "
            "use torch.nn.functional.conv2d for other kernels"
        )
    (n, c, h, w), k = x.shape, len(weight)
    if min(c, h, w, k) < 1 or not x.is_floating_point():
        raise ShapeError(
            f"styled_conv: expected floats and channels, rows and columns, got {x.dtype}, "
            f"{list(x.shape)} and K = {k}"
        )
    if styles.shape != (n, c) or bias.shape != (k,):
        got = f"{list(styles.shape)} and {list(bias.shape)}"
        raise ShapeError(
            f"styled_conv: expected styles [{n}, {c}] and bias [{k}], got {got}; expand them"
        )
    if taps is not None:
        if taps.shape != (4,):
            raise ShapeError(
                f"styled_conv: expected taps [4], got {list(taps.shape)}; filter after an op "
                "without taps"
            )
        if taps.requires_grad:
            raise NotDifferentiableError(
                "styled_conv: expected constant taps, got taps that require grad; pass "
                "taps.detach()"
            )
        h, w = 2 * h, 2 * w
    if noise is not None and (noise.shape[1:] != (h, w) or noise.shape[0] not in (1, n)):
        raise ShapeError(
            f"styled_conv: expected noise [1, {h}, {w}] or [{n}, {h}, {w}], got "
            f"{list(noise.shape)}; draw it for this map"
        )
    given = {"weight": weight, "styles": styles, "bias": bias, "noise": noise, "taps": taps}
    check_same_dtype_and_device(
        "styled_conv", x=x, **{key: t for key, t in given.items() if t is not None}
    )
    if not (0.0 <= slope <= 1.0 and 0.0 < gain < math.inf and (clamp is None or clamp > 0.0)):
        raise ConfigError(
            f"styled_conv: expected slope in 0 to 1, gain > 0 and clamp > 0 or None, got {slope}, "
            f"{gain} and {clamp}; "
            "change the sign of what comes in"
        )
    numbers = (float(slope), float(gain), math.inf if clamp is None else float(clamp))
    tensors = (_channels_last(x), *(None if t is None else t.contiguous() for t in given.values()))
    needs_graph = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, *given.values())
    )
    found = _apply(*tensors, *numbers) if needs_graph else _fwd(*tensors, *numbers, False)
    return cast("Tensor", found[0])
