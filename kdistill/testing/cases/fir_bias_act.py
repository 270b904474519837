"""Case of fir_bias_act."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.arguments import Activation
from kdistill.backends.reference import fir_bias_act as reference
from kdistill.ops import fir_bias_act
from kdistill.testing.cases import Inputs, OpCase, Shape

NUMBERS = _SLOPE, _GAIN, _CLAMP = 0.2, math.sqrt(2.0), 2.5


def op(x: Tensor, scale: Tensor, bias: Tensor, noise: Tensor, taps: Tensor | None) -> Tensor:
    """Return the op with the numbers of the case."""
    return fir_bias_act(x, scale, bias, noise, taps, slope=_SLOPE, gain=_GAIN, clamp=_CLAMP)


def _reference(
    x: Tensor, scale: Tensor, bias: Tensor, noise: Tensor, taps: Tensor | None
) -> Tensor:
    return reference.fir_bias_act(x, scale, bias, noise, taps, Activation(*NUMBERS))


def away_from_kinks(base: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``noise [M, h, w]``, drawn again where ``base`` with it is close to a kink."""
    edges = torch.tensor([0.0, _CLAMP / _GAIN, -_CLAMP / (_GAIN * _SLOPE)], dtype=torch.float64)
    best, widest = noise.double(), torch.full(noise.shape, -1.0, dtype=torch.float64)
    for _ in range(30 if base.numel() else 0):
        tried = (
            torch.randn(noise.shape, generator=generator, dtype=torch.float64)
            .to(noise.dtype)
            .double()
        )
        gap = (base + tried[:, None])[..., None].sub(edges).abs().amin((-1, 1))  # [N, h, w]
        gap = gap if len(noise) == len(base) else gap.amin(0, keepdim=True)
        best, widest = torch.where(gap > widest, tried, best), torch.maximum(gap, widest)
    return best.to(noise.dtype)


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    x, scale, bias = (
        randn(s.n, s.c, s.h, s.w).contiguous(memory_format=torch.channels_last),
        randn(s.n, s.c),
        randn(s.c),
    )
    taps = torch.tensor([0.25, 0.75, 0.5, 0.125]).to(x) if s.fir else None
    size = (s.h - s.fir, s.w - s.fir)
    noise = randn(s.m, *size)
    filtered = (
        reference.fir(x.double(), None if taps is None else taps.double())
        * scale.double()[:, :, None, None]
    )
    quiet = away_from_kinks(filtered + bias.double()[:, None, None], noise, generator)
    return x, scale, bias, quiet, taps


def scale_after(
    x: Tensor, scale: Tensor, bias: Tensor, noise: Tensor, taps: Tensor | None
) -> Tensor:
    """Return the same by the operators of the published network, one after the other."""
    if taps is not None:
        c = x.shape[1]
        x = F.conv2d(
            F.pad(x, (1, 1, 1, 1)),
            torch.outer(taps, taps).flip(0, 1).expand(c, 1, -1, -1),
            groups=c,
        )
    x = x * scale[:, :, None, None] + noise[:, None]
    return (F.leaky_relu(x + bias[:, None, None], _SLOPE) * _GAIN).clamp(-_CLAMP, _CLAMP)


CASE = OpCase(
    name="fir_bias_act",
    op=op,
    reference=_reference,
    make=_make,
    differentiable=(0, 1, 2, 3),
    tiny=Shape(n=2, m=1, c=2, h=4, w=3, fir=1),
    # one pixel; odd sizes and a vector tail; no image; more columns and channels than one tile; no
    # filter
    shapes=[
        Shape(n=1, m=1, c=1, h=2, w=2, fir=1),
        Shape(n=3, m=3, c=13, h=7, w=5, fir=1),
        Shape(n=0, m=1, c=5, h=4, w=4, fir=1),
        Shape(n=2, m=1, c=5, h=17, w=41, fir=1),
        Shape(n=2, m=2, c=131, h=3, w=6, fir=1),
        Shape(n=3, m=1, c=33, h=5, w=7, fir=0),
        Shape(n=1, m=1, c=70, h=19, w=1, fir=0),
    ],
    interpreted=[Shape(n=2, m=1, c=5, h=5, w=4, fir=1), Shape(n=2, m=2, c=33, h=3, w=5, fir=0)],
    bench_shapes=[
        Shape(n=16, m=1, c=64, h=33, w=33, fir=1),
        Shape(n=16, m=1, c=64, h=32, w=32, fir=0),
        Shape(n=16, m=1, c=16, h=65, w=65, fir=1),
        Shape(n=10, m=1, c=512, h=17, w=17, fir=1),
    ],
    depth=lambda s: (
        max(s.n, s.c / max(s.h * s.w, 1)) * s.h * s.w + 16
    ),  # sums over pixels and images behind dbias, channels behind dnoise
    flops=lambda s: (20 if s.fir else 6) * s.n * s.c * s.h * s.w,
    bytes=lambda s, itemsize: 6 * itemsize * s.n * s.c * s.h * s.w,
    peers={"scale_after": scale_after},
)
