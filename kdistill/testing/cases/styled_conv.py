"""Case of styled_conv."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.reference import styled_conv as reference
from kdistill.ops import styled_conv
from kdistill.ops.styled_conv import GRAD_ORDER
from kdistill.testing.cases._case import OpCase, Shape
from kdistill.testing.cases.fir_bias_act import NUMBERS, away_from_kinks
from kdistill.testing.cases.winograd_conv import GROWTH


def op(x: Tensor, weight: Tensor, styles: Tensor, scale: Tensor, bias: Tensor, noise: Tensor) -> Tensor:
    """Return the op with the numbers of the case."""
    slope, gain, clamp = NUMBERS
    return styled_conv(x, weight, styles, scale, bias, noise, slope=slope, gain=gain, clamp=clamp)


def _reference(x: Tensor, weight: Tensor, styles: Tensor, scale: Tensor, bias: Tensor, noise: Tensor) -> Tensor:
    return reference.styled_conv(x, weight, styles, scale, bias, noise, *NUMBERS, False)[0]


def _make(s: Shape, randn, generator: torch.Generator) -> tuple[Any, ...]:
    x, styles, scale = randn(s.n, s.c, s.h, s.w).contiguous(memory_format=torch.channels_last), randn(s.n, s.c), randn(s.n, s.k)
    weight, bias = randn(s.k, s.c, 3, 3) / (3 * math.sqrt(s.c)), randn(s.k)
    exact = [t.double() for t in (x, weight, styles, scale, bias)]
    base, _ = reference.styled_conv(*exact, None, 1.0, 1.0, math.inf, False)
    return x, weight, styles, scale, bias, away_from_kinks(base, randn(s.m, s.h, s.w), generator)


def grouped(x: Tensor, weight: Tensor, styles: Tensor, scale: Tensor, bias: Tensor, noise: Tensor) -> Tensor:
    """Return the same by the published network's way: the weights of every image, one convolution in groups."""
    slope, gain, clamp = NUMBERS
    n, c, h, w = x.shape
    own = (weight * styles[:, None, :, None, None]).reshape(-1, c, 3, 3)
    y = F.conv2d(x.reshape(1, n * c, h, w), own, padding=1, groups=n)
    y = y.reshape(n, -1, *y.shape[2:]) * scale[:, :, None, None] + noise[:, None] + bias[:, None, None]
    return (F.leaky_relu(y, slope) * gain).clamp(-clamp, clamp)


CASE = OpCase(
    name="styled_conv",
    op=op,
    reference=_reference,
    grad_order=GRAD_ORDER,
    make=_make,
    differentiable=(0, 1, 2, 3, 4, 5),
    tiny=Shape(n=2, m=1, c=2, k=3, h=3, w=4),
    # one pixel; odd sizes and tails of vectors and panels; no image; several panels and blocks
    shapes=[
        Shape(n=1, m=1, c=1, k=1, h=1, w=1),
        Shape(n=3, m=3, c=13, k=7, h=7, w=5),
        Shape(n=0, m=1, c=5, k=4, h=4, w=4),
        Shape(n=2, m=1, c=33, k=65, h=9, w=17),
        Shape(n=2, m=2, c=17, k=9, h=8, w=13),
    ],
    interpreted=[],
    bench_shapes=[
        Shape(n=10, m=1, c=64, k=64, h=32, w=32),
        Shape(n=10, m=1, c=128, k=128, h=16, w=16),
        Shape(n=10, m=1, c=16, k=16, h=32, w=32),
    ],
    # the convolution there and back, sums over maps and images; Winograd's rounding
    depth=lambda s: GROWTH**2 * (9 * (s.c + s.k) + max(s.n, 1) * s.h * s.w),
    flops=lambda s: 18 * s.n * s.h * s.w * s.c * s.k,
    bytes=lambda s, itemsize: itemsize * s.n * s.h * s.w * (4 * s.c + 8 * s.k),
    peers={"grouped": grouped},
)
