"""The operators of StyleGAN networks.  Equations: Karras et al. 2020 (StyleGAN2) and 2021 (StyleGAN3).

Symbols: N images, I and O channels in and out, k kernel side, T filter taps.  ``modulated_conv`` and ``filtered_lrelu`` are
where the time goes; ``styled_conv`` is a StyleGAN2 layer with everything beside its convolution in the op ``fir_bias_act``.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.engine.convolve import convolve_scaled
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
    x: Tensor, weight: Tensor, styles: Tensor, *, demodulate: bool, padding: int, gain: Tensor | float = 1.0
) -> Tensor:
    """Return the convolution of every image with its own weights ``V = weight * styles``.

    The styles scale the input and the demodulation scales the output, so that one dense convolution serves all images; the
    published form writes the weights of every image and convolves in groups.  Equal but for rounding.

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
    return y * _demodulation(weight, styles, gain)[:, :, None, None]


def styled_conv(
    x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor, bias: Tensor, *, line: Tensor | None, clamp: float | None
) -> Tensor:
    """Return a StyleGAN2 layer: modulated 3x3 convolution, noise, bias, leaky ReLU of gain sqrt(2), clamp.

    Args:
        x: ``[N, I, H, W]``.
        weight: ``[O, I, 3, 3]``.
        styles: ``[N, I]``.
        noise: ``[1, h, w]`` or ``[N, h, w]``, scaled.
        bias: ``[O]``.
        line: None, or the taps ``[4]`` of a separable FIR of gain 2: the convolution doubles the size first, as in
            ``modulated_conv_up``.
        clamp: Largest magnitude of the result, or None.
    """
    if line is None:
        y = convolve_scaled(x, styles, weight, 1)
    else:
        y = F.conv_transpose2d(fir_bias_act(x, styles), weight.transpose(0, 1), stride=2)
    gains = {"slope": SLOPE, "gain": math.sqrt(2.0), "clamp": clamp}
    return fir_bias_act(y, _demodulation(weight, styles, 1.0), bias, noise, line, **gains)


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
    y = y * _demodulation(weight, styles, 1.0)[:, :, None, None]
    low, high = (taps.shape[0] - 1) // 2, (taps.shape[0] - 2) // 2
    return upfirdn(y, taps, padding=(low, high, low, high), gain=4.0)


def upfirdn(
    x: Tensor, taps: Tensor | None, *, up: int = 1, down: int = 1, padding: tuple[int, ...] = (0, 0, 0, 0), gain: float = 1.0
) -> Tensor:
    """Return ``x`` with zeros inserted, padded, filtered and decimated.

    Args:
        x: ``[N, C, H, W]``.
        taps: ``[T]`` (separable) or ``[T, T]``, a true convolution; None filters nothing.
        up: ``up - 1`` zeros come after each sample.
        down: Every ``down``-th sample is kept, the first one included.
        padding: Zeros left, right, above and below, on the raised grid; negative numbers crop.
        gain: Factor of the result.
    """
    n, c, h, w = x.shape
    if up > 1:
        x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(n, c, h * up, w * up)
    if any(padding):
        x = F.pad(x, list(padding))
    if taps is None:
        return x[:, :, ::down, ::down] * gain
    if taps.ndim == 2:
        return F.conv2d(x, (taps.flip(0, 1) * gain).expand(c, 1, -1, -1), stride=down, groups=c)
    line = taps.flip(0) * math.sqrt(gain)
    x = F.conv2d(x, line[None, :].expand(c, 1, -1, -1), stride=(1, down), groups=c)
    return F.conv2d(x, line[:, None].expand(c, 1, -1, -1), stride=(down, 1), groups=c)


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
    """Return StyleGAN3's alias-free nonlinearity: bias, raise by ``up``, leaky ReLU, gain and clamp, lower by ``down``."""
    x = upfirdn(x + bias[None, :, None, None], up_taps, up=up, padding=padding, gain=float(up**2))
    x = (F.leaky_relu(x, slope) if slope != 1.0 else x) * gain
    return upfirdn(limited(x, clamp), down_taps, down=down)


def limited(x: Tensor, clamp: float | None) -> Tensor:
    """Return ``x`` within ``+-clamp``; None leaves it."""
    return x if clamp is None else x.clamp(-clamp, clamp)


def _demodulation(weight: Tensor, styles: Tensor, gain: Tensor | float) -> Tensor:
    """Return ``gain * rsqrt(sum_{i,k,k} V^2 + 1e-8)``, ``[N, O]``, without forming V."""
    norms: Tensor = styles.square() @ weight.square().sum((2, 3)).T
    return torch.rsqrt(norms + EPS) * gain
