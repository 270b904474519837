"""Case of step_with_dots."""

import torch
from torch import Tensor

from kdistill.backends.reference import step_with_dots as reference
from kdistill.ops import step_with_dots
from kdistill.testing.cases import Inputs, OpCase, Shape, numel_of


def _reference(y: Tensor, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return reference.step_with_dots(y, x, step, None)


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    rows = (s.g,) if hasattr(s, "g") else ()
    step = randn(s.g) if getattr(s, "steps", 0) else randn(1)[0].clone()
    return randn(*rows, s.p), randn(*rows, s.p), step


def _sub_and_two_dots(y: Tensor, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    # as one would write it; the products in float64, as ours are (in float32 they miss the
    # tolerance)
    wide = x.double()
    return torch.sub(y, x, alpha=float(step)), torch.stack(
        [torch.dot(wide, y.double()), torch.dot(wide, wide)]
    )


CASE = OpCase(
    name="step_with_dots",
    op=step_with_dots,
    reference=_reference,
    make=_make,
    differentiable=(0, 1, 2),
    tiny=Shape(g=2, p=5, steps=1),
    # nothing; one; primes; a power of two plus one, past one block of each backend; a group; past
    # the size for two threads
    shapes=[
        Shape(p=0),
        Shape(p=1),
        Shape(p=127),
        Shape(p=4097),
        Shape(g=0, p=16),
        Shape(g=3, p=0),
        Shape(g=1, p=31, steps=1),
        Shape(g=3, p=1021, steps=1),
        Shape(g=3, p=8193),
        Shape(p=65537),
        Shape(g=3, p=32771, steps=1),
    ],
    interpreted=[Shape(p=2053), Shape(g=3, p=37, steps=1)],
    bench_shapes=[Shape(p=320010), Shape(p=1 << 24)],  # ConvNet-3 of width 128; past any cache
    depth=lambda s: s.p,
    flops=lambda s: 6 * numel_of(s),
    bytes=lambda s, itemsize: 3 * itemsize * numel_of(s),
    peers={"sub, 2 float64 dots": _sub_and_two_dots},
)
