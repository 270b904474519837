"""Case of group_norm_silu."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.reference import group_norm_silu as reference
from kdistill.ops import group_norm_silu
from kdistill.testing.cases import Inputs, OpCase, Shape


def _groups(x: Tensor) -> int:
    """Return the groups of the case: of as many channels as divide, up to 8."""
    channels = x.shape[1]
    return channels // max(d for d in range(1, 9) if channels % d == 0)


def op(x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None = None) -> Tensor:
    """Return the op with the groups of the case."""
    return group_norm_silu(x, weight, bias, modulation, groups=_groups(x))


def _reference(x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None = None) -> Tensor:
    return reference.group_norm_silu(x, weight, bias, modulation, _groups(x), 1e-5)[0]


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    x = randn(s.n, s.c, s.h, s.w) + getattr(s, "mean", 0)
    rows = (randn(s.c), randn(s.c), randn(s.n, 2 * s.c))
    return x.contiguous(memory_format=torch.channels_last), *rows


def eager(x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None = None) -> Tensor:
    """Return the same by PyTorch's group norm, scale and shift, and SiLU."""
    y = F.group_norm(x, _groups(x), weight, bias)
    if modulation is not None:
        scale, shift = modulation[:, :, None, None].chunk(2, 1)
        y = torch.addcmul(shift, y, 1.0 + scale)
    return F.silu(y)


CASE = OpCase(
    name="group_norm_silu",
    op=op,
    reference=_reference,
    make=_make,
    differentiable=(0, 1, 2, 3),
    tiny=Shape(n=2, c=4, h=3, w=2),
    # one pixel; odd sizes and groups of all channels, tails of vectors; no image; powers of two
    # plus one; a large mean; many channels
    shapes=[
        Shape(n=1, c=5, h=1, w=1),
        Shape(n=6, c=13, h=7, w=5),
        Shape(n=0, c=5, h=4, w=4),
        Shape(n=3, c=33, h=17, w=9),
        Shape(n=2, c=24, h=32, w=32, mean=8),
        Shape(n=2, c=136, h=4, w=6),
    ],
    interpreted=[
        Shape(n=3, c=10, h=5, w=4),
        Shape(n=1, c=33, h=7, w=9),
    ],
    bench_shapes=[
        Shape(n=32, c=64, h=16, w=16),
        Shape(n=32, c=128, h=8, w=8),
        Shape(n=32, c=256, h=4, w=4),
        Shape(n=16, c=64, h=32, w=32),
    ],
    depth=lambda s: 8 * (s.n + 4) * s.h * s.w,  # sums over a group, and over all images
    flops=lambda s: 25 * s.n * s.c * s.h * s.w,
    bytes=lambda s, itemsize: 5 * itemsize * s.n * s.c * s.h * s.w,
    peers={"group_norm": eager},
)
