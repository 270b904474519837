"""Case of conv_grad_sqnorm."""

import torch
from torch import Tensor
from torch.func import grad as gradient_of
from torch.func import vmap

from kdistill.backends.reference import conv_grad_sqnorm as reference
from kdistill.ops import conv_grad_sqnorm
from kdistill.ops.conv_grad_sqnorm import is_gram_cheaper
from kdistill.testing.cases import Inputs, OpCase, Shape


def _op(x: Tensor, grad: Tensor, padding: int, form: str) -> Tensor:
    return conv_grad_sqnorm(x, grad, padding, form=form)


def _reference(x: Tensor, grad: Tensor, padding: int, form: str) -> Tensor:
    return reference.conv_grad_sqnorm(x, grad, padding, form == "gram").to(x.dtype)


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    padding = getattr(s, "p", 1)
    out = (s.h + 2 * padding - 2, s.w + 2 * padding - 2)
    # positive feature maps, as behind a ReLU: their inner products have a large common part
    return (
        randn(s.n, s.c, s.h, s.w).relu(),
        randn(s.n, s.k, *out),
        padding,
        getattr(s, "form", "auto"),
    )


def _by_vmap(x: Tensor, grad: Tensor, padding: int, form: str) -> Tensor:
    def loss(weight: Tensor, image: Tensor, out: Tensor) -> Tensor:
        return (torch.nn.functional.conv2d(image[None], weight, padding=padding) * out[None]).sum()

    weight = x.new_zeros(grad.shape[1], x.shape[1], 3, 3)
    return (
        vmap(gradient_of(loss), in_dims=(None, 0, 0))(weight, x, grad)
        .double()
        .square()
        .sum((1, 2, 3, 4))
        .to(x.dtype)
    )


def _outs(s: Shape) -> int:
    padding = getattr(s, "p", 1)
    return int((s.h + 2 * padding - 2) * (s.w + 2 * padding - 2))


def _multiplications(s: Shape) -> float:
    outs, pixels = _outs(s), s.h * s.w
    form = getattr(s, "form", "auto")
    if form == "gram" or (form == "auto" and is_gram_cheaper(s.c, s.k, pixels, outs)):
        return float(s.n * (s.c * pixels**2 + s.k * outs**2 + 4.5 * outs**2))
    return 9.0 * s.n * s.c * s.k * outs


CASE = OpCase(
    name="conv_grad_sqnorm",
    op=_op,
    reference=_reference,
    make=_make,
    differentiable=(0, 1),
    tiny=Shape(n=2, c=3, k=2, h=3, w=4),
    # one pixel; no image; primes; a power of two plus one; every padding in both forms; the
    # student's own layers, narrower
    shapes=[
        Shape(n=1, c=1, k=1, h=1, w=1, form="gram"),
        Shape(n=0, c=3, k=4, h=5, w=5, form="gram"),
        Shape(n=3, c=5, k=7, h=7, w=5, form="gram"),
        Shape(n=3, c=5, k=7, h=7, w=5, form="products"),
        Shape(n=2, c=4, k=3, h=5, w=9, p=0, form="gram"),
        Shape(n=2, c=3, k=2, h=6, w=4, p=3, form="gram"),
        Shape(n=2, c=3, k=2, h=6, w=4, p=3, form="products"),
        Shape(n=5, c=17, k=33, h=8, w=8),
        Shape(n=2, c=2, k=9, h=17, w=16),
    ],
    interpreted=[
        Shape(n=2, c=3, k=2, h=4, w=3, form="gram"),
        Shape(n=1, c=2, k=3, h=3, w=3, p=0, form="gram"),
    ],
    bench_shapes=[
        Shape(n=64, c=3, k=128, h=32, w=32),
        Shape(n=64, c=128, k=128, h=16, w=16),
        Shape(n=64, c=128, k=128, h=16, w=16, form="products"),
        Shape(n=64, c=128, k=128, h=8, w=8),
        Shape(n=64, c=128, k=128, h=8, w=8, form="products"),
    ],
    # a sum of squares of sums over pixels; in the Gram form its terms cancel, and the sum over
    # pairs is a deeper one
    depth=lambda s: float(_outs(s) ** 2 * s.c),
    flops=lambda s: 2 * _multiplications(s),
    bytes=lambda s, itemsize: itemsize * s.n * (s.c * s.h * s.w + s.k * _outs(s)) + 8 * s.n,
    peers={"vmap(grad)": _by_vmap},
)
