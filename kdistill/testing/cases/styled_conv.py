"""Case of styled_conv."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.arguments import Activation
from kdistill.backends.reference import styled_conv as reference
from kdistill.ops import styled_conv
from kdistill.testing.cases import Inputs, OpCase, Shape
from kdistill.testing.cases.fir_bias_act import NUMBERS, away_from_kinks
from kdistill.testing.cases.winograd_conv import GROWTH


def op(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor,
    taps: Tensor | None = None,
) -> Tensor:
    """Return the op with the numbers of the case."""
    slope, gain, clamp = NUMBERS
    return styled_conv(
        x, weight, styles, bias, noise, taps=taps, slope=slope, gain=gain, clamp=clamp
    )


def _reference(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor,
    taps: Tensor | None = None,
) -> Tensor:
    return reference.styled_conv(x, weight, styles, bias, noise, taps, Activation(*NUMBERS), False)[
        0
    ]


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    x, styles = (
        randn(s.n, s.c, s.h, s.w).contiguous(memory_format=torch.channels_last),
        randn(s.n, s.c),
    )
    weight, bias, up = randn(s.k, s.c, 3, 3), randn(s.k), 1 + s.fir
    taps = torch.tensor([0.25, 0.75, 0.5, 0.125]).to(x) if s.fir else None
    exact = [None if t is None else t.double() for t in (x, weight, styles, bias, None, taps)]
    base, *_ = reference.styled_conv(*exact, Activation(1.0, 1.0, math.inf), False)
    noise = away_from_kinks(base, randn(s.m, up * s.h, up * s.w), generator)
    return x, weight, styles, bias, noise, taps


def grouped(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor,
    taps: Tensor | None = None,
) -> Tensor:
    """Return the same as published: weights of every image, one convolution in groups."""
    slope, gain, clamp = NUMBERS
    (n, c, h, w), k = x.shape, len(weight)
    own = weight * styles[:, None, :, None, None]
    own = own * (own.square().sum((2, 3, 4), keepdim=True) + reference.EPS).rsqrt()
    x = x.reshape(1, n * c, h, w)
    if taps is None:
        y = F.conv2d(x, own.reshape(-1, c, 3, 3), padding=1, groups=n)
    else:
        y = F.conv_transpose2d(x, own.transpose(1, 2).reshape(-1, k, 3, 3), stride=2, groups=n)
        filters = torch.outer(taps, taps).flip(0, 1).expand(n * k, 1, -1, -1)
        y = F.conv2d(F.pad(y, (1, 1, 1, 1)), filters, groups=n * k)
    y = y.reshape(n, k, *y.shape[2:]) + noise[:, None] + bias[:, None, None]
    return (F.leaky_relu(y, slope) * gain).clamp(-clamp, clamp)


CASE = OpCase(
    name="styled_conv",
    op=op,
    reference=_reference,
    make=_make,
    differentiable=(0, 1, 2, 3, 4),
    tiny=Shape(n=2, m=1, c=2, k=3, h=3, w=4, fir=0),
    # one pixel (of few channels the gradient of styles is a small rest of large terms); odd sizes,
    # tails of vectors and panels; no image; several panels and blocks
    shapes=[
        Shape(n=1, m=1, c=5, k=3, h=1, w=1, fir=0),
        Shape(n=3, m=3, c=13, k=7, h=7, w=5, fir=0),
        Shape(n=0, m=1, c=5, k=4, h=4, w=4, fir=0),
        Shape(n=2, m=1, c=33, k=65, h=9, w=17, fir=0),
        Shape(n=2, m=2, c=17, k=9, h=8, w=13, fir=0),
        # the same where the size is doubled
        Shape(n=1, m=1, c=5, k=3, h=1, w=1, fir=1),
        Shape(n=3, m=3, c=13, k=7, h=7, w=5, fir=1),
        Shape(n=0, m=1, c=5, k=4, h=4, w=4, fir=1),
        Shape(n=2, m=1, c=33, k=65, h=9, w=17, fir=1),
        Shape(n=5, m=1, c=17, k=9, h=8, w=13, fir=1),
    ],
    interpreted=[],
    bench_shapes=[
        Shape(n=10, m=1, c=64, k=64, h=32, w=32, fir=0),
        Shape(n=10, m=1, c=64, k=64, h=16, w=16, fir=1),
        Shape(n=10, m=1, c=128, k=128, h=16, w=16, fir=0),
        Shape(n=10, m=1, c=16, k=16, h=32, w=32, fir=0),
    ],
    # the convolution and its transpose, sums over pixels and images; Winograd's rounding
    depth=lambda s: GROWTH**2 * (9 * (s.c + s.k) + max(s.n, 1) * (1 + s.fir) ** 2 * s.h * s.w),
    flops=lambda s: 18 * s.n * s.h * s.w * s.c * s.k,
    bytes=lambda s, itemsize: itemsize * s.n * s.h * s.w * (4 * s.c + 8 * (1 + s.fir) ** 2 * s.k),
    peers={"grouped": grouped},
)
