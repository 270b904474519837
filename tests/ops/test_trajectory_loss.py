import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill import ops
from kdistill.errors import DataError, ShapeError
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case

CASE = case("trajectory_loss")
# Triton's interpreter computes with NumPy, which warns of 2 / 0 and of 0 * inf
NUMPY_SPEAKS_UP = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@given(g=st.integers(0, 4), p=st.integers(1, 300), pad=st.integers(1, 3), masked=st.booleans())
def test_any_shape_stride_and_alignment(g, p, pad, masked):
    wide = torch.randn(3, g, p + pad)
    mask = torch.ones(p + pad)[pad:] if masked else None
    CASE.check((wide[0, :, pad:], wide[1, :, :p], wide[2, :, pad:], mask), Shape(g=g, p=p))


@pytest.mark.parametrize("backend", runnable_backends())
def test_what_the_mask_leaves_out_has_no_gradient(backend):
    final, target, start, mask = CASE.inputs(Shape(g=3, p=1021, mask="shared"), seed=3)
    with running_on(backend):
        loss, grad = ops.trajectory_loss(final, target, start, mask)
        remaining, remaining_grad = ops.trajectory_loss(
            *(x[:, mask == 1] for x in (final, target, start))
        )
    assert bool((grad[:, mask == 0] == 0).all())
    torch.testing.assert_close(loss, remaining)
    torch.testing.assert_close(grad[:, mask == 1], remaining_grad)


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_student_at_the_start_has_loss_one(backend):
    _, target, start, _ = CASE.inputs(Shape(g=3, p=127), seed=4)
    with running_on(backend):
        assert ops.trajectory_loss(start, target, start)[0].tolist() == [1.0] * 3
        loss, grad = ops.trajectory_loss(target, target, start)
    assert loss.tolist() == [0.0] * 3
    assert not grad.any()


def test_a_gradient_of_many_pages():
    p = (33 << 20) // 4  # past the size from which memory is fresh and huge pages are asked for
    final, target, start = torch.full((p,), 3.0), torch.full((p,), 1.0), torch.full((p,), 2.0)
    loss, grad = ops.trajectory_loss(final, target, start)
    assert loss.item() == 4.0
    assert bool((grad == torch.tensor(4.0 / p)).all())


@NUMPY_SPEAKS_UP
@pytest.mark.parametrize("backend", runnable_backends())
def test_equal_snapshots_are_named(backend):
    same, other = torch.randn(3, 31), torch.randn(3, 31)
    start = other.clone()
    start[1] = same[1]
    with running_on(backend):
        with pytest.raises(
            DataError,
            match=r"^trajectory_loss: expected start and target to differ where the mask is 1, "
            r"got equal parameters in row 1; the expert snapshots alias each other "
            r"\(store clones\), are the same epoch, or the mask is empty$",
        ):
            ops.trajectory_loss(other, same, start)
        with pytest.raises(DataError, match="got equal parameters; "):
            ops.trajectory_loss(other[0], same[0], same[0])
        with pytest.raises(DataError, match="the mask is empty"):
            ops.trajectory_loss(other, same, start, torch.zeros(31))
        with pytest.raises(DataError, match="got equal parameters; "):
            ops.trajectory_loss(torch.empty(0), torch.empty(0), torch.empty(0))


@NUMPY_SPEAKS_UP
@pytest.mark.parametrize("backend", runnable_backends())
def test_a_student_that_diverged_is_not_an_error_of_the_snapshots(backend):
    with running_on(backend):
        loss, _ = ops.trajectory_loss(torch.full((5,), math.nan), torch.zeros(5), torch.ones(5))
    assert math.isnan(loss.item())  # left to the caller's guard


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(2, 3, 4)}, r"expected final, target and start \[P\] or \[G, P\]"),
        ({1: torch.randn(3, 5)}, "flatten parameters into one vector per row"),
        (
            {2: torch.randn(4)},
            r"expected start torch.float32 \[3, 4\] on cpu, got torch.float32 \[4\] on cpu",
        ),
        ({2: torch.randn(3, 4, dtype=torch.float64)}, r"convert with .to\(final\)"),
        (
            {3: torch.ones(3)},
            r"mask .* \[4\] on cpu, got .* \[3\] on cpu; pass one number, 0 or 1, per parameter",
        ),
        (
            {3: torch.ones(4, dtype=torch.bool)},
            r"expected mask torch.float32 \[4\] on cpu, got torch.bool",
        ),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = [torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4), None]
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(ShapeError, match=message):
        ops.trajectory_loss(*arguments)
