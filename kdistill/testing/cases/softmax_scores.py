"""Case of softmax_scores."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.reference import softmax_scores as reference
from kdistill.ops import softmax_scores
from kdistill.testing.cases import Inputs, OpCase, Shape


def _reference(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return reference.softmax_scores(logits, labels).unbind(0)


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    logits = getattr(s, "scale", 1) * randn(s.n, s.k)
    if getattr(s, "soft", False):
        return logits, 3.0 * randn(s.n, s.k)
    return logits, torch.randint(0, s.k, (s.n,), generator=generator)


def _separately(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    # every score by itself, as a script or a published repository computes it
    if labels.is_floating_point():
        return _reference(logits, labels)
    loss = F.cross_entropy(logits, labels, reduction="none")
    el2n = (F.softmax(logits, 1) - F.one_hot(labels, logits.shape[1])).norm(dim=1)
    p = F.softmax(logits, 1)
    others = p.scatter(1, labels[:, None], -1.0).amax(1)
    margin = others - p.gather(1, labels[:, None])[:, 0]
    entropy = -(F.softmax(logits, 1) * F.log_softmax(logits, 1)).sum(1)
    return loss, el2n, margin, entropy, (logits.argmax(1) == labels).to(logits.dtype)


CASE = OpCase(
    name="softmax_scores",
    op=softmax_scores,
    reference=_reference,
    make=_make,
    differentiable=(0,),
    tiny=Shape(n=3, k=4),
    # two classes; primes; a power of two plus one; no sample; sure networks; soft labels; past one
    # block of each backend
    shapes=[
        Shape(n=1, k=2),
        Shape(n=127, k=10),
        Shape(n=31, k=53, scale=20),
        Shape(n=65, k=17, soft=True),
        Shape(n=0, k=7),
        Shape(n=257, k=100),
        Shape(n=1031, k=16),
        Shape(n=5, k=1025),
        Shape(n=3, k=2053, soft=True),
    ],
    interpreted=[Shape(n=3, k=5), Shape(n=2, k=1025, soft=True)],
    bench_shapes=[Shape(n=50000, k=100), Shape(n=50000, k=10), Shape(n=50000, k=100, soft=True)],
    depth=lambda s: s.k,
    flops=lambda s: 20 * s.n * s.k,
    bytes=lambda s, itemsize: (
        itemsize * s.n * s.k * (2 if getattr(s, "soft", False) else 1) + (itemsize * 5 + 8) * s.n
    ),
    peers={"separate formulations": _separately},
)
