"""Reference of row_cosine_distance: any floating dtype and device."""

import torch
from torch import Tensor


def row_cosine_distance(
    syn: Tensor, real: Tensor, rows: Tensor, mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    offsets, lengths = rows.unbind(1)
    owner = torch.repeat_interleave(
        torch.arange(len(rows), device=rows.device), lengths
    )  # row of every element that has one
    at = (
        torch.arange(len(owner), device=rows.device)
        + (offsets - lengths.cumsum(0) + lengths)[owner]
    )  # its place in the vector

    def row_sums(x: Tensor) -> Tensor:
        return x.new_zeros((*x.shape[:-1], len(rows))).index_add(-1, owner, x)  # [R] or [G, R]

    def norms(x: Tensor) -> Tensor:
        squares = row_sums(x.square())
        return torch.where(
            squares > 0, torch.where(squares > 0, squares, 1.0).sqrt(), 0.0
        )  # derivative 0 at 0

    keep = None if mask is None else mask[..., at]
    a, b = (x[..., at] if keep is None else keep * x[..., at] for x in (syn, real))
    wide_a, wide_b = a.double(), b.double()
    dot, norm_a, norm_b = row_sums(wide_a * wide_b), norms(wide_a), norms(wide_b)
    q = norm_a * norm_b + eps
    values = 1.0 - dot / q
    if keep is not None:  # a row that the mask leaves out is no row
        values = values * (row_sums(keep.double()) > 0)
    along_a = torch.where(norm_a > 0, dot * norm_b / (norm_a * q.square()), 0.0)
    v = along_a[..., owner].to(a.dtype) * a - (1.0 / q)[..., owner].to(a.dtype) * b
    grad = torch.zeros_like(syn).index_copy(-1, at, v)  # a and b are masked, so v is
    return values.sum(-1), grad
