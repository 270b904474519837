"""Case of norm_act_pool."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.reference import norm_act_pool as reference
from kdistill.ops import norm_act_pool
from kdistill.ops.norm_act_pool import (
    norm_act_pool_bwd,
    norm_act_pool_bwd_tangent,
    norm_act_pool_fwd,
    norm_act_pool_tangent,
)
from kdistill.testing.cases import Bench, Inputs, OpCase, Shape

_KINK = 0.02  # no activation is closer to the kink of the ReLU: no rounding flips its mask


def _reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.norm_act_pool(x, _rows(weight), _rows(bias), 1e-5)[0]


def _rows(parameter: Tensor) -> Tensor:
    return parameter if parameter.ndim == 2 else parameter[None]


def away_from_kinks(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x`` with those pixels moved whose activation lies near 0."""
    wide = x.double()
    scale, shift = (reference.per_image(_rows(p).double(), x.shape[0]) for p in (weight, bias))
    for _ in range(100):
        mean, rstd = reference.statistics(wide, 1e-5)
        y = reference.normalise(wide, mean, rstd) * scale + shift
        near = y.abs() < _KINK
        if not near.any():
            break
        # twice the distance, because the move changes the statistics a little
        wide = torch.where(
            near,
            wide + torch.where(y < 0, -2.0, 2.0) * _KINK / (scale * rstd[:, :, None, None]),
            wide,
        )
        wide = wide.to(x.dtype).double()
    return wide.to(x.dtype)


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    rows = (s.g, s.c) if s.g else (s.c,)
    weight, bias = randn(*rows), randn(*rows)
    weight = weight + torch.where(weight < 0, -0.3, 0.3)  # a small weight would need large moves
    x = randn(s.n, s.c, s.h, s.w) + getattr(s, "mean", 0)
    return (
        away_from_kinks(x, weight, bias).contiguous(memory_format=torch.channels_last),
        weight,
        bias,
    )


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], weight, bias)), 2)


def _instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.instance_norm(x, weight=weight, bias=bias)), 2)


def _make_tangents(s: Shape, randn, generator: torch.Generator) -> Inputs:
    x, weight, bias = _make(s, randn, generator)
    x_dot, grad, grad_dot = (
        randn(s.n, s.c, *size).contiguous(memory_format=torch.channels_last)
        for size in ((s.h, s.w), (s.h // 2, s.w // 2), (s.h // 2, s.w // 2))
    )
    return x, x_dot, weight, randn(*weight.shape), bias, randn(*bias.shape), grad, grad_dot


def both_passes(x, x_dot, weight, weight_dot, bias, bias_dot, grad, grad_dot) -> tuple[Tensor, ...]:
    """Return the results and gradients of the pair without a graph, each before its derivative."""
    out, out_dot, *saved = norm_act_pool_tangent(x, x_dot, weight, weight_dot, bias, bias_dot)
    return (
        out,
        out_dot,
        *norm_act_pool_bwd_tangent(grad, grad_dot, x, x_dot, weight, weight_dot, bias, *saved),
    )


def _reference_passes(
    x, x_dot, weight, weight_dot, bias, bias_dot, grad, grad_dot
) -> tuple[Tensor, ...]:
    rows = [_rows(p) for p in (weight, weight_dot, bias, bias_dot)]
    out, out_dot, *saved = reference.norm_act_pool_tangent(x, x_dot, *rows, 1e-5)
    return (
        out,
        out_dot,
        *reference.norm_act_pool_bwd_tangent(grad, grad_dot, x, x_dot, *rows[:3], *saved),
    )


def forward_over_reverse(
    x, x_dot, weight, weight_dot, bias, bias_dot, grad, grad_dot
) -> tuple[Tensor, ...]:
    """Return the same from ``torch.func`` for a weight ``[C]``: the tangent of value and vjp."""

    def value_and_pull_back(
        x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor
    ) -> tuple[Tensor, ...]:
        out, vjp = torch.func.vjp(_group_norm, x, weight, bias)
        return out, *vjp(grad)

    # NCHW: the derivative of group_norm takes views of nothing else
    x, x_dot, grad, grad_dot = (t.contiguous() for t in (x, x_dot, grad, grad_dot))
    with torch.enable_grad():  # else the pull-back is a fused kernel without a derivative
        primal, tangent = torch.func.jvp(
            value_and_pull_back, (x, weight, bias, grad), (x_dot, weight_dot, bias_dot, grad_dot)
        )
    (out, dx, dweight, dbias), (out_dot, dx_dot, dweight_dot, dbias_dot) = primal, tangent
    return out, out_dot, dx, dx_dot, dweight[None], dweight_dot[None], dbias[None], dbias_dot[None]


# one window; odd sizes, two rows of parameters and a vector tail; no image; powers of two plus one;
# a large mean; more channels than one block
_SHAPES = [
    Shape(n=1, c=1, h=2, w=3, g=0),
    Shape(n=6, c=13, h=7, w=5, g=2),
    Shape(n=0, c=5, h=4, w=4, g=0),
    Shape(n=3, c=33, h=17, w=9, g=3),
    Shape(n=1, c=24, h=32, w=32, g=0, mean=8),
    Shape(n=2, c=131, h=4, w=6, g=1),
]
_TINY = Shape(n=4, c=2, h=3, w=2, g=2)
_INTERPRETED = [Shape(n=4, c=5, h=5, w=4, g=2), Shape(n=1, c=33, h=10, w=9, g=0)]
_BENCH_SHAPES = [
    Shape(n=10, c=128, h=32, w=32, g=0),
    Shape(n=10, c=128, h=16, w=16, g=0),
    Shape(n=100, c=128, h=32, w=32, g=0),
    Shape(n=640, c=128, h=32, w=32, g=0),
]


def _depth(s: Shape) -> float:
    return (
        (s.n + 4) * s.h * s.w
    )  # four sums over an image behind dx, one over all of them behind dweight


TANGENTS = OpCase(
    name="norm_act_pool_tangent",
    op=both_passes,
    reference=_reference_passes,
    make=_make_tangents,
    differentiable=(),
    tiny=_TINY,
    shapes=_SHAPES,
    interpreted=_INTERPRETED,
    bench_shapes=_BENCH_SHAPES[:3],
    depth=lambda s: (s.n + 9) * s.h * s.w,  # nine sums over an image behind dx_dot
    flops=lambda s: 49 * s.n * s.c * s.h * s.w,
    bytes=lambda s, itemsize: itemsize * s.n * s.c * (6 * s.h * s.w + 4 * (s.h // 2) * (s.w // 2)),
    peers={"forward-over-reverse": forward_over_reverse},
)


def _without_graph(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return value and gradients for a cotangent of ones by the pair that the engine calls."""
    out, mean, rstd = norm_act_pool_fwd(x, weight, bias)
    dx, dweight, dbias = norm_act_pool_bwd(torch.ones_like(out), x, weight, bias, mean, rstd)
    return out, dx, dweight.reshape(weight.shape), dbias.reshape(bias.shape)


CASE = OpCase(
    name="norm_act_pool",
    op=norm_act_pool,
    reference=_reference,
    make=_make,
    differentiable=(0, 1, 2),
    tiny=_TINY,
    shapes=_SHAPES,
    interpreted=_INTERPRETED,
    bench_shapes=_BENCH_SHAPES,
    depth=_depth,
    flops=lambda s: 9 * s.n * s.c * s.h * s.w,
    bytes=lambda s, itemsize: itemsize * s.n * s.c * (3 * s.h * s.w + 2 * (s.h // 2) * (s.w // 2)),
    peers={"group_norm": _group_norm, "instance_norm": _instance_norm},
    benches={
        "forward_backward_engine": Bench(
            differentiable=(0, 1, 2),
            bytes=lambda s, itemsize: (
                itemsize * s.n * s.c * (3 * s.h * s.w + 2 * (s.h // 2) * (s.w // 2))
            ),
            without_graph=_without_graph,
        )
    },
    tangents=TANGENTS,
)
