"""Case of class_mean_sqdist."""

import torch
from torch import Tensor

from kdistill.backends.reference import class_mean_sqdist as reference
from kdistill.ops import class_mean_sqdist
from kdistill.ops.class_mean_sqdist import class_mean_sqdist_and_grad
from kdistill.testing.cases import Bench, Inputs, OpCase, Shape


def _reference(real, real_labels, syn, syn_labels, num_classes, weights=None) -> Tensor:
    return reference.class_mean_sqdist(real, real_labels, syn, syn_labels, num_classes, weights)[0]


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    labels = [torch.randint(0, s.k, (rows,), generator=generator) for rows in (s.n, s.m)]
    weights = randn(s.k, s.f) if getattr(s, "w", 0) else None
    return randn(s.n, s.f), labels[0], randn(s.m, s.f), labels[1], s.k, weights


def _per_class_loop(real, real_labels, syn, syn_labels, num_classes, weights=None) -> Tensor:
    # the published formulation
    loss = real.new_zeros(())
    for c in range(num_classes):
        of_real, of_syn = real[real_labels == c], syn[syn_labels == c]
        if len(of_real) and len(of_syn):
            diff = of_real.mean(0) - of_syn.mean(0)
            loss = loss + (diff if weights is None else weights[c] * diff).square().sum()
    return loss


CASE = OpCase(
    name="class_mean_sqdist",
    op=class_mean_sqdist,
    reference=_reference,
    make=_make,
    differentiable=(0, 2),
    tiny=Shape(n=5, m=4, f=3, k=2, w=1),
    # one row; primes; no synthetic row; more classes than rows, so that some are absent; more
    # features than one strip
    shapes=[
        Shape(n=1, m=1, f=1, k=1),
        Shape(n=127, m=31, f=53, k=7, w=1),
        Shape(n=7, m=0, f=16, k=3),
        Shape(n=19, m=5, f=33, k=40, w=1),
        Shape(n=65, m=17, f=1025, k=3),
        Shape(n=5, m=3, f=0, k=2),
    ],
    interpreted=[Shape(n=19, m=5, f=7, k=3, w=1), Shape(n=3, m=2, f=65, k=4)],
    bench_shapes=[Shape(n=5000, m=100, f=2048, k=10), Shape(n=640, m=100, f=2048, k=10)],
    depth=lambda s: s.n + s.m + s.k * s.f,
    flops=lambda s: (s.n + s.m + 5 * s.k) * s.f,
    bytes=lambda s, itemsize: itemsize * (2 * s.n + 2 * s.m + 2 * s.k) * s.f,
    peers={"per-class loop": _per_class_loop, "index_add": _reference},
    # as distribution matching uses it: the real features are constants, read once
    benches={
        "forward_backward_syn": Bench(
            differentiable=(2,),
            bytes=lambda s, itemsize: itemsize * (s.n + 2 * s.m + 2 * s.k) * s.f,
            without_graph=class_mean_sqdist_and_grad,
        ),
    },
)
