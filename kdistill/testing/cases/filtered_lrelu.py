"""Case of filtered_lrelu."""

import math
from typing import Any

import torch
from torch import Tensor

from kdistill.backends.arguments import Resampling
from kdistill.backends.reference import filtered_lrelu as reference
from kdistill.ops import filtered_lrelu
from kdistill.testing.cases import Inputs, OpCase, Shape

_SLOPE, _GAIN, _CLAMP = 0.2, math.sqrt(2.0), 0.4
_EDGES = (
    0.0,
    _CLAMP / _GAIN,
    -_CLAMP / (_GAIN * _SLOPE),
)  # of the upsampled value: where the derivative jumps
# of every map; the one whose upsampled values stay furthest from the edges is taken: no rounding
# flips a mask
_DRAWS = 4


def op(
    x: Tensor,
    bias: Tensor,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    up: int,
    down: int,
    padding: tuple[int, ...],
) -> Tensor:
    """Return the op with the numbers of the case."""
    numbers = {
        "up": up,
        "down": down,
        "padding": padding,
        "slope": _SLOPE,
        "gain": _GAIN,
        "clamp": _CLAMP,
    }
    return filtered_lrelu(x, bias, up_taps, down_taps, **numbers)


def _reference(x: Tensor, bias: Tensor, up_taps: Any, down_taps: Any, *factors: Any) -> Tensor:
    how = Resampling(*factors, _SLOPE, _GAIN, _CLAMP)
    return reference.filtered_lrelu(x, bias, up_taps, down_taps, how, False)[0]


def channels_first(x: Tensor, *others: Any) -> Tensor:
    """Return the same by one operator after the other, channels first as published."""
    return _reference(x.contiguous(), *others)


def taps_of(count: int) -> Tensor | None:
    """Return an asymmetric low-pass filter of sum 1 in float64; None for no taps."""
    if count == 0:
        return None
    at = torch.arange(count, dtype=torch.float64)
    line = torch.sin(math.pi * (at + 0.7) / (count + 0.2)) + 0.3 * torch.cos(at)
    return line / line.sum()


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    bias = randn(s.c)
    up_taps, down_taps = (
        None if t is None else t.to(bias.dtype) for t in (taps_of(s.t), taps_of(s.s))
    )
    padding = (s.low, s.high, s.high, s.low)
    best, widest = (
        torch.zeros(s.n, s.c, s.h, s.w, dtype=bias.dtype),
        torch.full((s.n, s.c), -1.0, dtype=torch.float64),
    )
    for _ in range(_DRAWS):
        tried = 2.0 * torch.randn(best.shape, generator=generator, dtype=torch.float64).to(
            bias.dtype
        )
        y = tried.double() + bias.double()[:, None, None]
        y = reference.upfirdn(
            y,
            None if up_taps is None else up_taps.double(),
            up=s.up,
            padding=padding,
            gain=float(s.up**2),
        )
        y = y.masked_fill(y == 0.0, math.inf)  # where no sample reaches there is no rounding
        gap = (
            torch.stack([(y - edge).abs().amin((2, 3)) for edge in _EDGES]).amin(0)
            if y.numel()
            else widest
        )  # [N, C]
        best = torch.where((gap > widest)[:, :, None, None], tried, best)
        widest = torch.maximum(gap, widest)
    return (
        best.contiguous(memory_format=torch.channels_last),
        bias,
        up_taps,
        down_taps,
        s.up,
        s.down,
        padding,
    )


def _upsampled(s: Shape) -> int:
    return (s.h * s.up + s.low + s.high - max(s.t, 1) + 1) * (
        s.w * s.up + s.low + s.high - max(s.t, 1) + 1
    )


def _flops(s: Shape) -> float:
    filters = 2.0 * max(s.t, 1) / s.up * (1 + 1 / s.up) + 2.0 * max(s.s, 1) / s.down * (
        1 + 1 / s.down
    )
    return s.n * s.c * _upsampled(s) * (filters + 6.0)


CASE = OpCase(
    name="filtered_lrelu",
    op=op,
    reference=_reference,
    make=_make,
    differentiable=(0, 1),
    tiny=Shape(n=2, c=2, h=4, w=3, up=2, down=2, t=6, s=4, low=3, high=2),
    # one pixel; a vector tail and sides that no factor divides; an upsampling by 4 that crops; no
    # image; more than a tile of columns; no filter at all; more zeros around than the filters are
    # long; factors 1 and 3
    shapes=[
        Shape(n=1, c=1, h=1, w=1, up=1, down=1, t=1, s=1, low=0, high=0),
        Shape(n=2, c=13, h=7, w=5, up=2, down=2, t=12, s=12, low=9, high=8),
        Shape(n=1, c=5, h=11, w=13, up=4, down=2, t=24, s=12, low=-3, high=-4),
        Shape(n=0, c=5, h=4, w=4, up=2, down=2, t=4, s=4, low=2, high=1),
        Shape(n=1, c=9, h=3, w=67, up=2, down=1, t=6, s=5, low=3, high=2),
        Shape(n=3, c=33, h=5, w=7, up=1, down=1, t=0, s=0, low=0, high=0),
        Shape(n=1, c=3, h=4, w=5, up=2, down=3, t=3, s=2, low=17, high=9),
        Shape(n=2, c=17, h=6, w=8, up=3, down=1, t=7, s=0, low=2, high=-2),
    ],
    interpreted=[
        Shape(n=1, c=3, h=5, w=3, up=2, down=1, t=4, s=2, low=2, high=1),
        Shape(n=1, c=2, h=2, w=18, up=1, down=1, t=3, s=0, low=1, high=1),
    ],
    bench_shapes=[
        Shape(n=4, c=128, h=38, w=38, up=2, down=2, t=12, s=12, low=9, high=8),
        Shape(n=4, c=128, h=38, w=38, up=4, down=2, t=24, s=12, low=-6, high=-9),
        Shape(n=2, c=512, h=38, w=38, up=2, down=2, t=12, s=12, low=-11, high=-12),
    ],
    depth=lambda s: (
        s.n * s.h * s.w + max(s.t, s.s) * 4
    ),  # sums over pixels and images behind dbias, taps along both axes
    flops=_flops,
    bytes=lambda s, itemsize: (
        s.n * s.c * (2 * itemsize * (s.h * s.w + _upsampled(s) / s.down**2) + _upsampled(s) / 2)
    ),
    peers={"channels_first": channels_first},
)
