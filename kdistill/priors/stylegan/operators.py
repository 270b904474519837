"""Operators of StyleGAN networks.

Equations: Karras et al. 2020 (StyleGAN2) and 2021 (StyleGAN3).  Nearly all time goes into the
modulated convolutions and what follows them: the op ``styled_conv`` or ``fir_bias_act`` in
StyleGAN2, the op ``filtered_lrelu`` in StyleGAN3.

Symbols: N images, I and O channels in and out, k kernel side, T filter taps.
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

SLOPE = 0.2  # of the leaky ReLU
GAIN = math.sqrt(2.0)  # after the leaky ReLU: keeps the scale of the features
EPS = 1e-8


def normalise(x: Tensor) -> Tensor:
    """Return ``x`` with rows of mean square 1: ``x * rsqrt(mean(x^2) + 1e-8)``."""
    return x * (x.square().mean(1, keepdim=True) + EPS).rsqrt()


def scaled_lrelu(x: Tensor) -> Tensor:
    """Return the leaky ReLU of slope 0.2, times sqrt(2)."""
    return F.leaky_relu(x, SLOPE) * GAIN


def clamped(x: Tensor, limit: float | None) -> Tensor:
    """Return ``x`` clamped to ``-limit .. limit``; None leaves it as it is."""
    return x if limit is None else x.clamp(-limit, limit)


def equalized_linear(
    tensors: Mapping[str, Tensor], name: str, x: Tensor, lr: float = 1.0
) -> Tensor:
    """Return the linear layer ``name`` with its weight scaled by the fan-in ("equalized").

    Args:
        tensors: Tensors of the network; ``<name>.weight`` and ``<name>.bias`` are used.
        name: Name of the layer.
        x: ``[N, fan_in]``.
        lr: Learning rate multiplier of the layer, a factor of weight and bias.
    """
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
    """Return the convolution of every image with weights of its own, ``V = weight * styles``.

    The styles scale the input and the demodulation scales the output, so that one dense convolution
    serves all images; the published form writes the weights of every image and convolves in groups.
    Both are equal up to rounding.

    Args:
        x: ``[N, I, H, W]``.
        weight: ``[O, I, k, k]``.
        styles: ``[N, I]``.
        demodulate: Whether to divide every ``V[n, o]`` by its norm: ``V * rsqrt(sum V^2 + 1e-8)``.
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
    taps: Tensor | None,
    clamp: float | None,
) -> Tensor:
    """Return a layer of StyleGAN2: modulated 3x3 convolution, noise, bias, leaky ReLU, clamp.

    Args:
        x: ``[N, I, H, W]``.
        weight: ``[O, I, 3, 3]``.
        styles: ``[N, I]``.
        noise: ``[1, h, w]`` or ``[N, h, w]``, already scaled by its strength.
        bias: ``[O]``.
        taps: None, or the filter with which the convolution doubles the size, as
            ``upsampling_taps`` returns it: ``[4]`` for the fused op, ``[T, T]`` for one operator
            after another.
        clamp: Largest magnitude of the result, or None.
    """
    if taps is not None and taps.ndim == 2:
        y = upsampling_conv(x, weight, styles, taps)
        return clamped(scaled_lrelu(y + noise[:, None] + bias[:, None, None]), clamp)
    activation = {"slope": SLOPE, "gain": GAIN, "clamp": clamp}
    if takes_winograd(x, weight, 1):
        return ops.styled_conv(x, weight, styles, bias, noise, taps=taps, **activation)
    if taps is None:
        y = convolve_scaled(x, styles, weight, 1)
    else:
        y = F.conv_transpose2d(fir_bias_act(x, styles), weight.transpose(0, 1), stride=2)
    return fir_bias_act(y, demodulation(weight, styles), bias, noise, taps, **activation)


def upsampling_taps(taps: Tensor) -> Tensor:
    """Return a FIR of gain 1, ``[T, T]``, in the form with which ``styled_conv`` doubles the size.

    Four by four taps that are an outer product ``l l'`` become ``2 l``, the taps ``[4]`` of gain 2
    along each axis, which the fused ops take.  Any other filter stays as it is.
    """
    if tuple(taps.shape) != (4, 4) or not bool(taps.sum() > 0):
        return taps
    along_axis = taps.sum(0) * taps.sum().rsqrt()
    error = (torch.outer(along_axis, along_axis) - taps).abs().max()
    is_separable = bool(error <= 4 * torch.finfo(taps.dtype).eps * taps.abs().max())
    return 2.0 * along_axis if is_separable else taps


def upsampling_conv(x: Tensor, weight: Tensor, styles: Tensor, taps: Tensor) -> Tensor:
    """Return StyleGAN2's modulated convolution that doubles the size, with any filter ``[T, T]``.

    The definition is: insert zeros, apply the FIR with gain 4, convolve with the flipped 3x3 kernel
    and demodulate.  A transposed convolution skips the inserted zeros; the FIR, which commutes with
    it, follows.
    """
    y = F.conv_transpose2d(x * styles[:, :, None, None], weight.transpose(0, 1), stride=2)
    y = y * demodulation(weight, styles)[:, :, None, None]
    before, after = (taps.shape[0] - 1) // 2, (taps.shape[0] - 2) // 2
    return upfirdn(y, taps, padding=(before, after, before, after), gain=4.0)


def upsampled(x: Tensor, taps: Tensor) -> Tensor:
    """Return images ``[N, C, H, W]`` at twice the side, by a FIR ``[T, T]`` of gain 1."""
    before, after = (taps.shape[0] + 1) // 2, (taps.shape[0] - 2) // 2
    return upfirdn(x, taps, up=2, padding=(before, after, before, after), gain=4.0)


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
    """Return StyleGAN3's alias-free nonlinearity.

    That is: bias, upsampling, leaky ReLU with gain and clamp, downsampling.  Separable filters
    ``[T]``, which all but the radial configuration have, run in the op ``filtered_lrelu``; a filter
    ``[T, T]`` takes one operator after another.
    """
    if all(taps is None or taps.ndim == 1 for taps in (up_taps, down_taps)):
        activation = {"slope": slope, "gain": gain, "clamp": clamp}
        return ops.filtered_lrelu(
            x, bias, up_taps, down_taps, up=up, down=down, padding=padding, **activation
        )
    x = upfirdn(x + bias[None, :, None, None], up_taps, up=up, padding=padding, gain=float(up**2))
    x = (F.leaky_relu(x, slope) if slope != 1.0 else x) * gain
    return upfirdn(clamped(x, clamp), down_taps, down=down)
