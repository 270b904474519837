"""What a StyleGAN2 layer does after its convolution, in one pass: demodulation, FIR, noise, bias, leaky ReLU, gain, clamp.

Symbols: N images, C channels, H x W the map that comes in, h x w the one that goes out, M rows of
    noise.
Derivation and traffic: docs/ops/fir_bias_act.md.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor

from kdistill.backends.reference.fir_bias_act import fir_bias_act_bwd as _differentiable_bwd
from kdistill.errors import ConfigError, NotDifferentiableError, ShapeError
from kdistill.ops._layout import Layout, array, maps, require, sizes_of
from kdistill.ops._registry import check_same_dtype_and_device, fast_apply, register

GRAD_ORDER = 2


def _empty(like: Tensor, *sizes: int) -> Tensor:
    return torch.empty(
        sizes, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _fake_fwd(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
) -> Tensor:
    n, c, h, w = x.shape
    return _empty(x, n, c, h - (taps is not None), w - (taps is not None))


def _fake_bwd(
    grad: Tensor,
    out: Tensor,
    x: Tensor,
    scale: Tensor,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
    noise_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        _empty(x, *x.shape),
        torch.empty_like(scale),
        x.new_empty(x.shape[1]),
        x.new_empty((noise_rows, *out.shape[2:])),
    )


def _layouts_fwd(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
) -> tuple[Layout, ...]:
    n, c, h, w = sizes_of(x, "x [N, C, H, W]")
    require(taps is None or min(h, w) >= 2, "x with H, W >= 2 for taps", list(x.shape))
    m = 1 if noise is None else len(noise)
    require(m in (1, n), f"noise of 1 or {n} rows", m)
    less = 0 if taps is None else 1
    return maps(n, c, h, w), array(n, c), array(c), array(m, h - less, w - less), array(4)


def _layouts_bwd(
    grad: Tensor,
    out: Tensor,
    x: Tensor,
    scale: Tensor,
    taps: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
    noise_rows: int,
) -> tuple[Layout, ...]:
    image, scales, *_ = _layouts_fwd(x, scale, None, None, taps, slope, gain, limit)
    n, c, h, w = image.sizes
    require(noise_rows in (0, 1, n), f"noise_rows 0, 1 or {n}", noise_rows)
    less = 0 if taps is None else 1
    result = maps(n, c, h - less, w - less)
    return result, result, image, scales, array(4)


# x, grad, out: channels-last; noise: [M, h, w]; limit: infinity for none; noise_rows: M, or 0 where
# its gradient is not wanted
_fwd = register(
    "fir_bias_act",
    "(Tensor x, Tensor scale, Tensor? bias, Tensor? noise, Tensor? taps, float slope, float gain, "
    "float limit) -> Tensor",
    fake=_fake_fwd,
    layouts=_layouts_fwd,
)
_bwd = register(
    "fir_bias_act_bwd",
    "(Tensor grad, Tensor out, Tensor x, Tensor scale, Tensor? taps, float slope, float gain, "
    "float limit, int noise_rows)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_bwd,
    layouts=_layouts_bwd,
)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _FirBiasAct(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        noise: Tensor | None,
        taps: Tensor | None,
        slope: float,
        gain: float,
        limit: float,
    ) -> Tensor:
        return cast("Tensor", _fwd(x, scale, bias, noise, taps, slope, gain, limit))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, _, noise, taps, *ctx.numbers = inputs
        ctx.noise_rows = 0 if noise is None or not noise.requires_grad else noise.shape[0]
        ctx.save_for_backward(output, x, scale, taps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, x, scale, taps = ctx.saved_tensors
        # being differentiated again: the same formula; of the result only signs and sizes enter,
        # which have no derivative
        bwd: Any = _differentiable_bwd if torch.is_grad_enabled() else _bwd
        dx, dscale, dbias, dnoise = bwd(
            _channels_last(grad), out.detach(), x, scale, taps, *ctx.numbers, ctx.noise_rows
        )
        wanted = ctx.needs_input_grad
        return (
            dx,
            dscale,
            dbias if wanted[2] else None,
            dnoise if wanted[3] else None,
            None,
            None,
            None,
            None,
        )


_apply = fast_apply(_FirBiasAct)


def fir_bias_act(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    taps: Tensor | None = None,
    *,
    slope: float = 1.0,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """Return ``clamp(gain * leaky_relu(fir(x) * scale + noise + bias))``.

    With ``x`` and ``scale`` alone it is the modulation of a layer's input.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.  Channels-last memory is read as it is, anything
            else is converted first.
        scale: ``[N, C]``, a factor of every image and channel: the demodulation.
        bias: ``[C]``, or None.
        noise: ``[M, h, w]`` with M = 1 or N, the same for all channels, or None.
        taps: ``[4]``: the map is padded by one zero and filtered along both axes, a true
            convolution, so that ``h, w = H - 1, W - 1``.  A constant.  None filters nothing: ``h, w
            = H, W``.
        slope: Factor of negative values, 0 to 1; 1 is no nonlinearity.
        gain: Factor of the result, positive.
        clamp: Largest magnitude of the result, positive, or None.

    Returns:
        ``[N, C, h, w]``, channels-last.  Differentiable twice in ``x``, ``scale``, ``bias`` and
        ``noise``; the derivative at 0 is ``gain * slope``, at the clamp and beyond 0.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        ConfigError: ``slope``, ``gain`` or ``clamp`` is out of range.
        NotDifferentiableError: ``taps`` requires grad.

    Cost: 6 flops per element forward and 6 backward, with taps 20 and 20; reads ``x`` and writes
        the result (backward: reads the gradient, the result and ``x``, writes the gradient of
        ``x``); saves ``x`` and the result.

    References: Karras et al., Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020,
        section 2 and appendix B.
    """
    if x.ndim != 4 or (taps is not None and min(x.shape[2:]) < 2):
        raise ShapeError(
            f"fir_bias_act: expected x [N, C, H, W], with taps of H, W >= 2, got {list(x.shape)}; "
            "add the dimensions that miss"
        )
    n, c, h, w = x.shape
    if scale.shape != (n, c) or (bias is not None and bias.shape != (c,)):
        got = f"{list(scale.shape)} and {'none' if bias is None else list(bias.shape)}"
        raise ShapeError(
            f"fir_bias_act: expected scale [{n}, {c}] and bias [{c}], got {got}; expand them"
        )
    if taps is not None and taps.shape != (4,):
        raise ShapeError(
            f"fir_bias_act: expected taps [4], got {list(taps.shape)}; filter before the op"
        )
    size = (h - (taps is not None), w - (taps is not None))
    if noise is not None and (noise.shape[1:] != size or noise.shape[0] not in (1, n)):
        raise ShapeError(
            f"fir_bias_act: expected noise [1, {size[0]}, {size[1]}] or [{n}, {size[0]}, "
            f"{size[1]}], got {list(noise.shape)}; "
            "draw it for the map that goes out"
        )
    given = {"bias": bias, "noise": noise, "taps": taps}
    check_same_dtype_and_device(
        "fir_bias_act", x=x, scale=scale, **{k: v for k, v in given.items() if v is not None}
    )
    if not (0.0 <= slope <= 1.0 and 0.0 < gain < math.inf and (clamp is None or clamp > 0.0)):
        raise ConfigError(
            f"fir_bias_act: expected slope in 0 to 1, gain > 0 and clamp > 0 or None, got {slope}, "
            f"{gain} and {clamp}; "
            "change the sign of what comes in"
        )
    if taps is not None and taps.requires_grad:
        raise NotDifferentiableError(
            "fir_bias_act: expected constant taps, got taps that require grad; pass taps.detach()"
        )
    numbers = (float(slope), float(gain), math.inf if clamp is None else float(clamp))
    tensors = (
        _channels_last(x),
        scale.contiguous(),
        *(None if t is None else t.contiguous() for t in (bias, noise, taps)),
    )
    needs_graph = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, scale, bias, noise)
    )
    return cast("Tensor", (_apply if needs_graph else _fwd)(*tensors, *numbers))
