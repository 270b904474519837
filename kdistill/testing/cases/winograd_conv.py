"""Case of winograd_conv."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.ops import winograd_conv
from kdistill.testing.cases import Inputs, OpCase, Shape

GROWTH = 8  # of the rounding error over that of a plain sum: the bound of NUMERICS.md


def _reference(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    return F.conv2d(x, weight, padding=padding)


def _contiguous(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    return F.conv2d(x.contiguous(), weight.contiguous(), padding=padding)


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    x = randn(s.n, s.c, s.h, s.w).contiguous(memory_format=torch.channels_last)
    return x, randn(s.k, s.c, 3, 3) / (3 * math.sqrt(s.c)), s.p


CASE = OpCase(
    name="winograd_conv",
    op=winograd_conv,
    reference=_reference,
    make=_make,
    differentiable=(0, 1),
    tiny=Shape(n=2, c=2, k=3, h=4, w=5, p=1),
    # one pixel; a tail of every kind; no image; powers of two plus one; wide padding; no padding
    shapes=[
        Shape(n=1, c=1, k=1, h=1, w=1, p=1),
        Shape(n=3, c=13, k=7, h=7, w=5, p=1),
        Shape(n=0, c=5, k=4, h=4, w=4, p=1),
        Shape(n=2, c=33, k=17, h=9, w=17, p=1),
        Shape(n=5, c=3, k=8, h=6, w=8, p=3),
        Shape(n=1, c=8, k=16, h=3, w=10, p=0),
    ],
    interpreted=[],
    bench_shapes=[
        Shape(n=10, c=128, k=128, h=16, w=16, p=1),
        Shape(n=10, c=128, k=128, h=8, w=8, p=1),
        Shape(n=100, c=128, k=128, h=16, w=16, p=1),
        Shape(n=64, c=32, k=32, h=16, w=16, p=1),
    ],
    depth=lambda s: GROWTH**2 * 9 * s.c,
    flops=lambda s: 18 * s.n * (s.h + 2 * s.p - 2) * (s.w + 2 * s.p - 2) * s.c * s.k,
    bytes=lambda s, itemsize: (
        itemsize * (s.n * s.h * s.w * s.c + 9 * s.c * s.k + s.n * s.h * s.w * s.k)
    ),
    peers={"conv2d": _contiguous, "conv2d channels-last": _reference},
)
