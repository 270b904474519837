"""The distance between two gradients of a network, row by row: the objective of gradient matching.

Symbols: P parameters, G groups (classes), R rows of the weights (one per output unit), a and b one
row of each gradient.
Derivation and traffic: docs/ops/row_cosine_distance.md.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from kdistill.errors import ShapeError
from kdistill.ops._layout import Signature, array, contiguous, mask_of, require, sizes_of
from kdistill.ops._registry import plain

GRAD_ORDER = 0
EPS = 1e-6  # the published constant, added to the product of the norms
_FLATTEN = "flatten gradients into one vector per row of the group"


def _declare(syn: Tensor, real: Tensor, rows: Tensor, mask: Tensor | None, eps: float) -> Signature:
    require(syn.ndim in (1, 2), "syn and real [P] or [G, P]", list(syn.shape), _FLATTEN)
    require(eps > 0, "eps above 0", eps, f"leave it out for {EPS:g}")
    r, _ = sizes_of(rows, "rows [R, 2]")
    vectors = array(*syn.shape, hint=_FLATTEN)
    return Signature((vectors, vectors, array(r, 2, dtype=torch.int64), mask_of(syn, mask)))


_run = plain("row_cosine_distance", _declare)


class RowTable:
    """Where the rows of a network's weights lie in its flat parameter vector.

    Args:
        rows: (offset, length) of every row, ascending and without overlap; elements of no row are
            left out of the distance.
        numel: P, the length of the vector.

    Raises:
        ShapeError: A row is empty, overlaps its predecessor or ends behind P.
    """

    def __init__(self, rows: Sequence[tuple[int, int]], numel: int):
        end = 0
        for number, (offset, length) in enumerate(rows):
            if length < 1 or offset < end or offset + length > numel:
                raise ShapeError(
                    f"RowTable: expected rows (offset, length) that ascend within {numel} "
                    f"elements, got ({offset}, {length}) as row {number} after an end at {end}; "
                    "sort them and leave empty ones out"
                )
            end = offset + length
        self.numel, self.count = numel, len(rows)
        table = torch.tensor(list(rows), dtype=torch.int64).reshape(-1, 2)
        self._tables = {table.device: table}

    @staticmethod
    def of_shapes(shapes: Sequence[Sequence[int]]) -> "RowTable":
        """Return one row per output unit of every tensor of two or more dimensions, one by one."""
        rows: list[tuple[int, int]] = []
        start = 0
        for shape in shapes:
            numel = int(torch.Size(shape).numel())
            if len(shape) >= 2 and numel:
                length = numel // shape[0]
                rows += [(start + i * length, length) for i in range(shape[0])]
            start += numel
        return RowTable(rows, start)

    def __repr__(self) -> str:
        return f"RowTable({self.count} rows in {self.numel} elements)"

    def on(self, device: torch.device) -> Tensor:
        """Return the table, int64 ``[R, 2]``; copied to a device once."""
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]


def row_cosine_distance(
    syn: Tensor, real: Tensor, rows: RowTable, mask: Tensor | None = None, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """Return the sum over rows of ``1 - <a, b> / (|a| |b| + eps)`` and its gradient in ``syn``.

    Here a is a row of ``syn`` and b the same row of ``real``.

    Args:
        syn: Gradient of the loss on the synthetic images, ``[P]`` or ``[G, P]``, float32 or
            float64.
        real: Gradient on the real images, like ``syn``; a constant.
        rows: The rows, the same for all groups.
        mask: 0 or 1, ``[P]`` (for every group) or ``[G, P]``, dtype and device of ``syn``; a
            constant.  It multiplies both gradients, and a row that it leaves out altogether is not
            counted.  None leaves nothing out.
        eps: Added to the product of the norms, above 0.

    Returns:
        The distance in float64, ``[]`` or ``[G]``, between 0 and 2R, and its gradient, a new tensor
        like ``syn``, 0 outside the rows.  Sums are taken in float64 and in an order that depends on
        the table alone.  A row of zeros in ``syn`` has the derivative of PyTorch's norm there, 0.
        Not differentiable: the gradient is the direction of ``engine.grad_jvp``.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: 11 flops per element; reads two arrays (three with a mask ``[G, P]``) and writes one: the
        second read of a row comes from the cache.

    References: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, eq.
        9 and its grouping by output unit; the constant eps is that of the authors' code.
    """
    p = rows.numel
    if syn.shape[-1:] != (p,):
        raise ShapeError(
            f"row_cosine_distance: expected syn and real [{p}] or [G, {p}], got {list(syn.shape)} "
            f"and {list(real.shape)}; {_FLATTEN}"
        )
    tensors = contiguous(syn, real, rows.on(syn.device), mask)
    return cast("tuple[Tensor, Tensor]", _run(*tensors, eps))
