"""Case of row_cosine_distance."""

import torch
from torch import Tensor

from kdistill.backends.reference import row_cosine_distance as reference
from kdistill.ops import row_cosine_distance
from kdistill.ops.row_cosine_distance import EPS, RowTable
from kdistill.testing.cases import Inputs, OpCase, Shape, drawn_mask, mask_numel


def _reference(
    syn: Tensor, real: Tensor, rows: RowTable, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return reference.row_cosine_distance(syn, real, rows.on(syn.device), mask, EPS)


def _table(s: Shape) -> RowTable:
    if hasattr(s, "convnet"):  # ConvNet-3 of this width on 3x32x32, 10 classes
        w = s.convnet
        blocks = [shape for c in (3, w, w) for shape in ((w, c, 3, 3), (w,), (w,), (w,))]
        return RowTable.of_shapes([*blocks, (10, 16 * w), (10,)])
    step = s.n + s.gap
    return RowTable([(s.gap + i * step, s.n) for i in range(s.r)], s.gap + s.r * step)


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    rows = _table(s)
    groups = (s.g,) if hasattr(s, "g") else ()
    real = randn(*groups, rows.numel)
    syn = 0.3 * real + randn(*groups, rows.numel)
    mask = drawn_mask(s, syn, generator)
    if mask is not None and s.r > 2:  # one row is left out altogether
        mask[..., s.gap + s.n + s.gap : s.gap + 2 * s.n + s.gap] = 0
    return syn, real, rows, mask


def _published(
    syn: Tensor, real: Tensor, rows: RowTable, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    # the published formulation: a matrix per parameter tensor, sums and norms along its rows,
    # autograd for the gradient; in float64, because in float32 it misses the tolerance
    table = rows.on(torch.device("cpu"))
    tensors: list[
        tuple[int, int, int]
    ] = []  # (offset, rows, length) of runs of adjacent rows of one length
    for offset, length in table.tolist():
        if (
            tensors
            and tensors[-1][2] == length
            and tensors[-1][0] + tensors[-1][1] * length == offset
        ):
            tensors[-1] = (tensors[-1][0], tensors[-1][1] + 1, length)
        else:
            tensors.append((offset, 1, length))
    with torch.enable_grad():
        leaf = syn.detach().requires_grad_()
        loss = torch.zeros(syn.shape[:-1], dtype=torch.float64, device=syn.device)
        for offset, count, length in tensors:
            a, b = (
                x[..., offset : offset + count * length].double().unflatten(-1, (count, length))
                for x in (leaf, real)
            )
            cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + EPS)
            loss = loss + (1 - cosine).sum(-1)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), grad


def _depth(s: Shape) -> float:
    lengths = _table(s).on(torch.device("cpu"))[:, 1].tolist()
    return 3 * max([*lengths, 1]) + len(lengths)  # three sums along a row, one over the rows


def _elements(s: Shape) -> int:
    return getattr(s, "g", 1) * _table(s).numel


def _bytes(s: Shape, itemsize: int) -> float:
    masks = mask_numel(s, _elements(s), _table(s).numel)
    return itemsize * (3 * _elements(s) + masks)


CASE = OpCase(
    name="row_cosine_distance",
    op=row_cosine_distance,
    reference=_reference,
    make=_make,
    differentiable=(0, 1),
    tiny=Shape(g=2, r=3, n=5, gap=1),
    # one row (not of one element: cosines near 1 leave nothing but rounding); primes; a power of
    # two plus one, past one round of a block; no rows; no group; groups with each kind of mask;
    # past the size for two threads; a real network
    shapes=[
        Shape(r=1, n=5, gap=0),
        Shape(r=7, n=31, gap=3),
        Shape(r=5, n=513, gap=1, mask="shared"),
        Shape(r=0, n=4, gap=5),
        Shape(g=0, r=3, n=16, gap=0),
        Shape(g=1, r=3, n=37, gap=2, mask="own"),
        Shape(g=3, r=5, n=129, gap=0, mask="shared"),
        Shape(g=3, r=11, n=27, gap=5, mask="own"),
        Shape(g=2, r=1, n=20011, gap=2),
        Shape(g=2, convnet=8),
    ],
    interpreted=[
        Shape(r=3, n=530, gap=2),
        Shape(g=2, r=3, n=17, gap=1, mask="shared"),
        Shape(g=2, r=3, n=5, gap=0, mask="own"),
    ],
    bench_shapes=[
        Shape(g=10, convnet=128),
        Shape(convnet=128),
    ],  # all classes of DC in one call; one class
    depth=_depth,
    flops=lambda s: 11 * _elements(s),
    bytes=_bytes,
    peers={"published loop over layers, float64, autograd": _published},
)
