"""A StyleGAN2 layer as published, in PyTorch.

It is a modulated convolution, FIR, noise, bias and leaky ReLU.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, appendix B:
either every image has weights of its own and the convolution runs in groups, or the styles scale
the input and the demodulation scales the output.  A layer that doubles the size is a transposed
convolution followed by the FIR, in both forms."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

SLOPE, GAIN = 0.2, math.sqrt(2.0)

# (x [N, I, H, W], styles [N, I], weight [O, I, 3, 3], bias [O], noise [N, h, w], taps [4, 4] of a
# layer that doubles, or None)
Layer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def grouped(
    x: Tensor, styles: Tensor, weight: Tensor, bias: Tensor, noise: Tensor, taps: Tensor | None
) -> Tensor:
    """Return the layer by a grouped convolution with the weights of every image."""
    (n, c, h, w), o = x.shape, len(weight)
    own = weight * styles[:, None, :, None, None]  # [N, O, I, 3, 3]
    own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, n * c, h, w)
    if taps is None:
        y = functional.conv2d(x, own.reshape(n * o, c, 3, 3), padding=1, groups=n)
    else:
        y = functional.conv_transpose2d(
            x, own.transpose(1, 2).reshape(n * c, o, 3, 3), stride=2, groups=n
        )
    return _finished(y.reshape(n, o, *y.shape[2:]), bias, noise, taps)


def scaled(
    x: Tensor, styles: Tensor, weight: Tensor, bias: Tensor, noise: Tensor, taps: Tensor | None
) -> Tensor:
    """Return the layer by one convolution between two scalings."""
    demodulation = (styles.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()
    x = x * styles[:, :, None, None]
    if taps is None:
        y = functional.conv2d(x, weight, padding=1)
    else:
        y = functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return _finished(y * demodulation[:, :, None, None], bias, noise, taps)


def scaled_channels_last(
    x: Tensor, styles: Tensor, weight: Tensor, bias: Tensor, noise: Tensor, taps: Tensor | None
) -> Tensor:
    """Return ``scaled`` in the memory format that this library's convolutions like best."""
    return scaled(
        x.contiguous(memory_format=torch.channels_last), styles, weight, bias, noise, taps
    )


def _finished(y: Tensor, bias: Tensor, noise: Tensor, taps: Tensor | None) -> Tensor:
    if taps is not None:
        o = y.shape[1]
        y = functional.conv2d(
            functional.pad(y, [1, 1, 1, 1]), (4.0 * taps).flip(0, 1).expand(o, 1, -1, -1), groups=o
        )
    y = y + noise[:, None] + bias[:, None, None]
    return functional.leaky_relu(y, SLOPE) * GAIN


PEERS: dict[str, Layer] = {
    "grouped convolution": grouped,
    "scale before and after": scaled,
    "scale before and after, channels-last": scaled_channels_last,
}
