"""The operators of StyleGAN networks.  Equations: Karras et al. 2020 (StyleGAN2) and 2021 (StyleGAN3).

Symbols: N images, I and O channels in and out, k kernel side, T filter taps.  ``modulated_conv``
    and ``filtered_lrelu`` are
where the time goes; what stands beside a convolution is the op ``fir_bias_act`` in StyleGAN2
(``styled_conv``) and the op ``filtered_lrelu`` in StyleGAN3.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill import ops
from kdistill.backends.reference.filtered_lrelu import upfirdn
from kdistill.backends.reference.styled_conv import demodulation
from kdistill.engine.convolve import convolve_scaled, takes_winograd
from kdistill.ops import fir_bias_act

SLOPE = 0.2
EPS = 1e-8


def normalise(x: Tensor) -> Tensor:
    """Return ``x`` with rows of mean square 1: ``x * rsqrt(mean(x^2) + 1e-8)``."""
    return x * (x.square().mean(1, keepdim=True) + EPS).rsqrt()


def lrelu(x: Tensor) -> Tensor:
    """Return leaky ReLU of slope 0.2, times sqrt(2)."""
    return F.leaky_relu(x, SLOPE) * math.sqrt(2.0)


def dense(tensors: Mapping[str, Tensor], name: str, x: Tensor, lr: float = 1.0) -> Tensor:
    """Return ``x W^T * lr/sqrt(fan_in) + b * lr`` with the stored weight and bias of ``name``."""
    weight = tensors[f"{name}.weight"]
    return F.linear(x, weight * (lr / math.sqrt(weight.shape[1])), tensors[f"{name}.bias"] * lr)


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    demodulate: bool,
    padding: int,
    gain: Tensor | float = 1.0,
) -> Tensor:
    """Return the convolution of every image with its own weights ``V = weight * styles``.

    The styles scale the input and the demodulation scales the output, so that one dense convolution
    serves all images; the published form writes the weights of every image and convolves in groups.
    Equal but for rounding.

    Args:
        x: ``[N, I, H, W]``.
        weight: ``[O, I, k, k]``.
        styles: ``[N, I]``.
        demodulate: Divide every ``V[n, o]`` by its norm, ``V * rsqrt(sum V^2 + 1e-8)``.
        padding: Zeros on every side.
        gain: Factor of V after the demodulation.
    """
    if not demodulate:
        return convolve_scaled(x, styles * gain, weight, padding)
    y = convolve_scaled(x, styles, weight, padding)
    return y * (demodulation(weight, styles) * gain)[:, :, None, None]


def styled_conv(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor,
    bias: Tensor,
    *,
    line: Tensor | None,
    clamp: float | None,
) -> Tensor:
    """Return a StyleGAN2 layer: modulated 3x3 convolution, noise, bias, leaky ReLU of gain sqrt(2), clamp.

    Args:
        x: ``[N, I, H, W]``.
        weight: ``[O, I, 3, 3]``.
        styles: ``[N, I]``.
        noise: ``[1, h, w]`` or ``[N, h, w]``, scaled.
        bias: ``[O]``.
        line: None, or the taps ``[4]`` of a separable FIR of gain 2: the convolution doubles the
            size first, as in ``modulated_conv_up``.
        clamp: Largest magnitude of the result, or None.
    """
    gains = {"slope": SLOPE, "gain": math.sqrt(2.0), "clamp": clamp}
    if takes_winograd(x, weight, 1):
        return ops.styled_conv(x, weight, styles, bias, noise, taps=line, **gains)
    if line is None:
        y = convolve_scaled(x, styles, weight, 1)
    else:
        y = F.conv_transpose2d(fir_bias_act(x, styles), weight.transpose(0, 1), stride=2)
    return fir_bias_act(y, demodulation(weight, styles), bias, noise, line, **gains)


def line_of(taps: Tensor) -> Tensor | None:
    """Return the line l of four taps with ``taps = l l'``, or None where there is none."""
    if tuple(taps.shape) != (4, 4) or not bool(taps.sum() > 0):
        return None
    line = taps.sum(0) * taps.sum().rsqrt()
    off = (torch.outer(line, line) - taps).abs().max()
    return line if bool(off <= 4 * torch.finfo(taps.dtype).eps * taps.abs().max()) else None


def modulated_conv_up(x: Tensor, weight: Tensor, styles: Tensor, taps: Tensor) -> Tensor:
    """Return StyleGAN2's convolution that doubles the size: zeros inserted, FIR of gain 4, demodulated 3x3 kernel, flipped.

    A transposed convolution skips the inserted zeros; the FIR, which commutes with it, follows.
    """
    y = F.conv_transpose2d(x * styles[:, :, None, None], weight.transpose(0, 1), stride=2)
    y = y * demodulation(weight, styles)[:, :, None, None]
    low, high = (taps.shape[0] - 1) // 2, (taps.shape[0] - 2) // 2
    return upfirdn(y, taps, padding=(low, high, low, high), gain=4.0)


def filtered_lrelu(
    x: Tensor,
    bias: Tensor,
    *,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    up: int,
    down: int,
    padding: tuple[int, ...],
    slope: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    """Return StyleGAN3's alias-free nonlinearity: bias, raise by ``up``, leaky ReLU, gain and clamp, lower by ``down``.

    Filters along the axes, which all but the radial configuration have, run in the op
    ``filtered_lrelu``; a filter ``[T, T]`` takes one operator after the other.
    """
    if all(taps is None or taps.ndim == 1 for taps in (up_taps, down_taps)):
        numbers = {"slope": slope, "gain": gain, "clamp": clamp}
        return ops.filtered_lrelu(
            x, bias, up_taps, down_taps, up=up, down=down, padding=padding, **numbers
        )
    x = upfirdn(x + bias[None, :, None, None], up_taps, up=up, padding=padding, gain=float(up**2))
    x = (F.leaky_relu(x, slope) if slope != 1.0 else x) * gain
    return upfirdn(limited(x, clamp), down_taps, down=down)


def limited(x: Tensor, clamp: float | None) -> Tensor:
    """Return ``x`` within ``+-clamp``; None leaves it."""
    return x if clamp is None else x.clamp(-clamp, clamp)
