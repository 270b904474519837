"""What a StyleGAN2 layer does after its convolution, in one pass.

Demodulation, FIR filter, noise, bias, leaky ReLU, gain, clamp.

Symbols: N images, C channels, H x W input, h x w result, M rows of noise.
Derivation and traffic: docs/ops/fir_bias_act.md.
"""

from typing import Any, cast

import torch
from torch import Tensor

from kdistill.backends.arguments import Activation, fir_sizes
from kdistill.backends.reference.fir_bias_act import fir_bias_act_bwd as _differentiable_bwd
from kdistill.ops import _layout
from kdistill.ops._registry import fast_apply, register

GRAD_ORDER = 2


def _declare_fwd(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    taps: Tensor | None,
    act: Activation,
) -> _layout.Signature:
    form = "x [N, C, H, W]"
    n, c, h, w = _layout.sizes_of(x, form)
    fits = taps is None or min(h, w) >= 2
    _layout.require(fits, f"{form}, with taps of H, W >= 2", list(x.shape), "pad more")
    _layout.require_activation(*act)
    result = _layout.feature_maps(*fir_sizes(x.shape, taps))
    factors = _layout.array(n, c, hint="expand it"), _layout.array(c, hint="expand it")
    filters = _layout.array(4, hint="filter before the op")
    inputs = (_layout.feature_maps(n, c, h, w), *factors, _layout.noise_of(result, noise), filters)
    return _layout.Signature(inputs, (result,))


def _declare_bwd(
    grad: Tensor,
    out: Tensor,
    x: Tensor,
    scale: Tensor,
    taps: Tensor | None,
    act: Activation,
    noise_rows: int,
) -> _layout.Signature:
    (image, factors, channels, _, filters), (result,) = _declare_fwd(
        x, scale, None, None, taps, act
    )
    n, _, *size = result.sizes
    _layout.require(
        noise_rows in (0, 1, n), f"noise_rows 0, 1 or {n}", noise_rows, "pass those of noise"
    )
    outputs = (image, factors, channels, _layout.array(noise_rows, *size))
    return _layout.Signature((result, result, image, factors, filters), outputs)


# noise_rows: M, or 0 where the gradient of the noise is not wanted
_fwd = register("fir_bias_act", _declare_fwd)
_bwd = register("fir_bias_act_bwd", _declare_bwd, outputs=4)


class _FirBiasAct(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        *tensors, act = inputs
        return cast("Tensor", _fwd(*tensors, *act))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, _, noise, taps, ctx.act = inputs
        ctx.noise_rows = 0 if noise is None or not noise.requires_grad else noise.shape[0]
        ctx.save_for_backward(output, x, scale, taps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, *inputs = ctx.saved_tensors
        saved = (_layout.channels_last(grad), out.detach(), *inputs)
        # being differentiated again: of the result only signs and sizes enter the same formula,
        # which have no derivative
        if torch.is_grad_enabled():
            grads = _differentiable_bwd(*saved, ctx.act, ctx.noise_rows)  # type: ignore[call-arg]
        else:
            grads = _bwd(*saved, *ctx.act, ctx.noise_rows)
        return (
            *(g if w else None for g, w in zip(grads, ctx.needs_input_grad, strict=False)),
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
        taps: ``[4]``: the input is padded by one zero and filtered along both axes, a true
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
    _layout.require_constant("fir_bias_act", taps=taps)
    act = _layout.activation(slope, gain, clamp)
    tensors = (_layout.channels_last(x), *_layout.contiguous(scale, bias, noise, taps))
    if _layout.records_graph(x, scale, bias, noise):
        return cast("Tensor", _apply(*tensors, act))
    return cast("Tensor", _fwd(*tensors, *act))
