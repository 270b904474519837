"""A StyleGAN3 layer as the published network computes it in PyTorch, one operator after the other.

Karras et al., "Alias-Free Generative Adversarial Networks", NeurIPS 2021, section 3: a modulated
convolution, in groups with the weights of every image or between two scalings, then bias, zeros
inserted, padding, a depthwise FIR along each axis, leaky ReLU, gain, clamp, and a depthwise FIR
along each axis that keeps every second sample."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

SLOPE, GAIN, CLAMP = 0.2, math.sqrt(2.0), 256.0

# (x [N, I, H, W], styles [N, I], weight [O, I, 3, 3], bias [O], up_taps [T], down_taps [S]); sizes:
# up and padding
Layer = Callable[..., Tensor]


def grouped(
    x: Tensor, styles: Tensor, weight: Tensor, bias: Tensor, up: Tensor, down: Tensor, sizes: Any
) -> Tensor:
    """Return the layer by a grouped convolution with the weights of every image."""
    (n, c, h, w), o = x.shape, len(weight)
    own = weight * styles[:, None, :, None, None]  # [N, O, I, 3, 3]
    own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    y = functional.conv2d(
        x.reshape(1, n * c, h, w), own.reshape(n * o, c, 3, 3), padding=2, groups=n
    )
    return _finished(y.reshape(n, o, *y.shape[2:]), bias, up, down, sizes)


def scaled(
    x: Tensor, styles: Tensor, weight: Tensor, bias: Tensor, up: Tensor, down: Tensor, sizes: Any
) -> Tensor:
    """Return the layer by one convolution between two scalings."""
    demodulation = (styles.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()
    y = functional.conv2d(x * styles[:, :, None, None], weight, padding=2)
    return _finished(y * demodulation[:, :, None, None], bias, up, down, sizes)


def _finished(y: Tensor, bias: Tensor, up: Tensor, down: Tensor, sizes: Any) -> Tensor:
    n, c, h, w = y.shape
    y, factor = y + bias[:, None, None], sizes.up
    y = functional.pad(y.reshape(n, c, h, 1, w, 1), [0, factor - 1, 0, 0, 0, factor - 1]).reshape(
        n, c, h * factor, w * factor
    )
    y = _along_both(functional.pad(y, list(sizes.padding)), up.flip(0) * factor, 1)
    y = (functional.leaky_relu(y, SLOPE) * GAIN).clamp(-CLAMP, CLAMP)
    return _along_both(y, down.flip(0), 2)


def _along_both(y: Tensor, line: Tensor, step: int) -> Tensor:
    c = y.shape[1]
    y = functional.conv2d(y, line[None, :].expand(c, 1, -1, -1), stride=(1, step), groups=c)
    return functional.conv2d(y, line[:, None].expand(c, 1, -1, -1), stride=(step, 1), groups=c)


PEERS: dict[str, Layer] = {"grouped convolution": grouped, "scale before and after": scaled}
