"""Case of trajectory_loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.reference import trajectory_loss as reference
from kdistill.ops import trajectory_loss
from kdistill.testing.cases import Inputs, OpCase, Shape, drawn_mask, mask_numel, numel_of


def _reference(
    final: Tensor, target: Tensor, start: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return reference.trajectory_loss(final, target, start, mask)[:2]


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    rows = (s.g,) if hasattr(s, "g") else ()
    start = randn(*rows, s.p)
    target, final = start + 0.5 * randn(*rows, s.p), start + 0.5 * randn(*rows, s.p)
    mask = drawn_mask(s, start, generator)
    if mask is not None:
        mask[..., :1] = 1  # no row without anything to compare
    return final, target, start, mask


def _published(
    final: Tensor, target: Tensor, start: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    # MTT's two sums of squares, here in float64 (in float32 they miss the tolerance), and autograd
    # for the gradient
    with torch.enable_grad():
        leaf = final.detach().requires_grad_()
        keep = 1.0 if mask is None else mask.double()
        left, whole = keep * leaf.double(), keep * target.double()
        loss = F.mse_loss(left, whole, reduction="sum") / F.mse_loss(
            keep * start.double(), whole, reduction="sum"
        )
        (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad


def _bytes(s: Shape, itemsize: int) -> float:
    # three arrays in, one out; the mask once; the gradient is read and written once more for its
    # scale
    return itemsize * (6 * numel_of(s) + mask_numel(s, numel_of(s), s.p))


CASE = OpCase(
    name="trajectory_loss",
    op=trajectory_loss,
    reference=_reference,
    make=_make,
    differentiable=(0, 1, 2, 3),
    tiny=Shape(g=2, p=5, mask="own"),
    # one; primes; a power of two plus one, past one block of each backend; no row; groups with each
    # kind of mask; past the size for two threads (a row without parameters has no denominator: an
    # error)
    shapes=[
        Shape(p=1),
        Shape(p=127),
        Shape(p=127, mask="shared"),
        Shape(p=4097),
        Shape(g=0, p=16, mask="shared"),
        Shape(g=1, p=31, mask="own"),
        Shape(g=3, p=1021),
        Shape(g=3, p=1021, mask="shared"),
        Shape(g=3, p=8193, mask="own"),
        Shape(p=65537, mask="shared"),
        Shape(g=3, p=32771),
    ],
    interpreted=[Shape(p=2053), Shape(g=3, p=37, mask="shared"), Shape(g=2, p=41, mask="own")],
    bench_shapes=[
        Shape(p=320010),
        Shape(p=320010, mask="shared"),
        Shape(p=1 << 24),
    ],  # ConvNet-3 of width 128; past any cache
    depth=lambda s: s.p,
    flops=lambda s: 9 * numel_of(s),
    bytes=_bytes,
    peers={"mse_loss twice, float64, autograd": _published},
)
