"""Case of norm_act_pool."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.reference import norm_act_pool as reference
from kdistill.ops import norm_act_pool
from kdistill.ops.norm_act_pool import GRAD_ORDER
from kdistill.testing.cases._case import OpCase, Shape

_KINK = 0.02  # no activation is closer to the kink of the ReLU: no rounding flips its mask


def _reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.norm_act_pool(x, _rows(weight), _rows(bias), 1e-5)[0]


def _rows(parameter: Tensor) -> Tensor:
    return parameter if parameter.ndim == 2 else parameter[None]


def away_from_kinks(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x`` with the pixels moved whose activation lies near 0; the others keep their bits."""
    wide = x.double()
    scale, shift = (reference._per_image(_rows(p).double(), x.shape[0]) for p in (weight, bias))
    for _ in range(100):
        mean, rstd = reference._statistics(wide, 1e-5)
        y = reference._normalise(wide, mean, rstd) * scale + shift
        near = y.abs() < _KINK
        if not near.any():
            break
        # twice the distance, because the move changes the statistics a little
        wide = torch.where(near, wide + torch.where(y < 0, -2.0, 2.0) * _KINK / (scale * rstd[:, :, None, None]), wide)
        wide = wide.to(x.dtype).double()
    return wide.to(x.dtype)


def _make(s: Shape, randn, generator: torch.Generator) -> tuple[Any, ...]:
    rows = (s.g, s.c) if s.g else (s.c,)
    weight, bias = randn(*rows), randn(*rows)
    weight = weight + torch.where(weight < 0, -0.3, 0.3)  # a small weight would need large moves
    x = randn(s.n, s.c, s.h, s.w) + getattr(s, "mean", 0)
    return away_from_kinks(x, weight, bias).contiguous(memory_format=torch.channels_last), weight, bias


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], weight, bias)), 2)


def _instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.instance_norm(x, weight=weight, bias=bias)), 2)


CASE = OpCase(
    name="norm_act_pool",
    op=norm_act_pool,
    reference=_reference,
    grad_order=GRAD_ORDER,
    make=_make,
    differentiable=(0, 1, 2),
    tiny=Shape(n=4, c=2, h=3, w=2, g=2),
    # one window; odd sizes, two rows of parameters and a vector tail; no image; powers of two plus one; a large mean;
    # more channels than one block
    shapes=[
        Shape(n=1, c=1, h=2, w=3, g=0),
        Shape(n=6, c=13, h=7, w=5, g=2),
        Shape(n=0, c=5, h=4, w=4, g=0),
        Shape(n=3, c=33, h=17, w=9, g=3),
        Shape(n=1, c=24, h=32, w=32, g=0, mean=8),
        Shape(n=2, c=131, h=4, w=6, g=1),
    ],
    interpreted=[Shape(n=4, c=5, h=5, w=4, g=2), Shape(n=1, c=33, h=10, w=9, g=0)],
    bench_shapes=[
        Shape(n=10, c=128, h=32, w=32, g=0),
        Shape(n=10, c=128, h=16, w=16, g=0),
        Shape(n=100, c=128, h=32, w=32, g=0),
        Shape(n=640, c=128, h=32, w=32, g=0),
    ],
    depth=lambda s: (s.n + 4) * s.h * s.w,  # four sums over an image behind dx, one over all of them behind dweight
    flops=lambda s: 9 * s.n * s.c * s.h * s.w,
    bytes=lambda s, itemsize: itemsize * s.n * s.c * (3 * s.h * s.w + 2 * (s.h // 2) * (s.w // 2)),
    peers={"group_norm": _group_norm, "instance_norm": _instance_norm},
)
