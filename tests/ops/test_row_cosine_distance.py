import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill import ops
from kdistill.errors import ShapeError
from kdistill.ops.row_cosine_distance import RowTable
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case

CASE = case("row_cosine_distance")


@given(
    g=st.integers(0, 4),
    r=st.integers(0, 6),
    n=st.integers(3, 90),
    gap=st.integers(0, 5),
    pad=st.integers(1, 3),
    masked=st.booleans(),
)
def test_any_shape_stride_and_alignment(g, r, n, gap, pad, masked):
    rows = CASE.inputs(Shape(r=r, n=n, gap=gap), seed=0)[2]
    wide = torch.randn(2, g, rows.numel + pad)
    mask = torch.ones(rows.numel + pad)[pad:] if masked else None
    CASE.check(
        (wide[0, :, pad:], wide[1, :, : rows.numel], rows, mask), Shape(g=g, r=r, n=n, gap=gap)
    )


def test_it_is_the_published_sum_over_layers():
    inputs = CASE.inputs(Shape(g=2, convnet=4), seed=1, dtype=torch.float64)
    (published,) = CASE.peers.values()
    for ours, theirs in zip(CASE.op(*inputs), published(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", runnable_backends())
def test_rows_of_zeros(backend):
    rows = RowTable.of_shapes([(3, 4)])
    real = torch.arange(1.0, 13.0)
    syn = real.clone()
    syn[:4] = 0  # what autograd gives: the norm has derivative 0 there, the product with b has not
    real[4:8] = 0
    with running_on(backend):
        loss, grad = ops.row_cosine_distance(syn, real, rows)
    assert loss.item() == pytest.approx(2.0, abs=1e-6)
    torch.testing.assert_close(grad[:4], -real[:4] / 1e-6)
    assert not grad[4:8].any()
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("backend", runnable_backends())
def test_what_the_mask_leaves_out_is_not_counted(backend):
    syn, real, rows, _ = CASE.inputs(Shape(g=2, r=4, n=6, gap=2), seed=3)
    mask = torch.ones(rows.numel)
    mask[2 + 8 : 2 + 8 + 6] = 0  # the second row
    mask[2] = 0
    with running_on(backend):
        loss, grad = ops.row_cosine_distance(syn, real, rows, mask)
        others = RowTable([(3, 5), (18, 6), (26, 6)], rows.numel)
        remaining, remaining_grad = ops.row_cosine_distance(syn, real, others)
    torch.testing.assert_close(loss, remaining)
    torch.testing.assert_close(grad, remaining_grad)


@pytest.mark.parametrize("backend", runnable_backends())
def test_nan_stays_nan(backend):
    rows = RowTable.of_shapes([(2, 3)])
    with running_on(backend):
        loss, _ = ops.row_cosine_distance(torch.full((6,), math.nan), torch.ones(6), rows)
    assert math.isnan(loss.item())  # left to the caller's guard


def test_rows_of_tensors_are_output_units():
    rows = RowTable.of_shapes([(2, 3, 2, 2), (2,), (4, 5)])
    assert rows.on(torch.device("cpu")).tolist() == [
        [0, 12],
        [12, 12],
        [26, 5],
        [31, 5],
        [36, 5],
        [41, 5],
    ]
    assert repr(rows) == "RowTable(6 rows in 46 elements)"


@pytest.mark.parametrize("rows", [[(0, 0)], [(0, 4), (3, 2)], [(8, 3)], [(-1, 2)]], ids=str)
def test_wrong_tables_are_named(rows):
    with pytest.raises(
        ShapeError,
        match=r"^RowTable: expected rows \(offset, length\) that ascend within 10 elements",
    ):
        RowTable(rows, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {0: torch.randn(2, 3, 4)},
            r"expected syn and real \[P\] or \[G, P\], got \[2, 3, 4\]; flatten gradients",
        ),
        ({1: torch.randn(2, 4)}, "flatten gradients into one vector per row of the group"),
        ({1: torch.randn(3, 4, dtype=torch.float64)}, r"convert with .to\(syn\)"),
        ({2: RowTable([(0, 4)], 5)}, r"expected syn and real \[5\] or \[G, 5\]"),
        (
            {3: torch.ones(3)},
            r"mask .* \[4\] on cpu, got .* \[3\] on cpu; pass one number, 0 or 1, per parameter",
        ),
        (
            {3: torch.ones(4, dtype=torch.bool)},
            r"expected mask torch.float32 \[4\] on cpu, got torch.bool",
        ),
        ({4: 0.0}, r"expected eps above 0, got 0.0; leave it out for 1e-06"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = [torch.randn(3, 4), torch.randn(3, 4), RowTable([(0, 4)], 4), None, 1e-6]
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(ShapeError, match=message):
        ops.row_cosine_distance(*arguments)
