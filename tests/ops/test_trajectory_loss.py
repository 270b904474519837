import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill import ops
from kdistill.errors import DataError, NotDifferentiableError, ShapeError
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case

CASE = case("trajectory_loss")
# Triton's interpreter computes with NumPy, which warns of 2 / 0 and of 0 * inf
NUMPY_SPEAKS_UP = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", CASE.shapes, ids=str)
@pytest.mark.parametrize("backend", runnable_backends())
def test_matches_the_float64_reference(backend, shape, dtype):
    inputs = CASE.inputs(shape, seed=0, dtype=dtype)
    with running_on(backend):
        CASE.check(inputs, shape)
        assert CASE.op(*inputs)[0].dtype == torch.float64


@given(g=st.integers(0, 4), p=st.integers(1, 300), pad=st.integers(1, 3), masked=st.booleans())
def test_any_shape_stride_and_alignment(g, p, pad, masked):
    wide = torch.randn(3, g, p + pad)
    mask = torch.ones(p + pad)[pad:] if masked else None
    CASE.check((wide[0, :, pad:], wide[1, :, :p], wide[2, :, pad:], mask), Shape(g=g, p=p))


@pytest.mark.parametrize("backend", runnable_backends())
@pytest.mark.parametrize(
    "shape", [Shape(p=127, mask="shared"), Shape(g=3, p=1021, mask="own")], ids=str
)
def test_the_gradient_is_that_of_autograd(backend, shape):
    final, target, start, mask = CASE.inputs(shape, seed=1, dtype=torch.float64)
    leaf = final.clone().requires_grad_()
    (expected,) = torch.autograd.grad(CASE.reference(leaf, target, start, mask)[0].sum(), leaf)
    with running_on(backend):
        _, grad = ops.trajectory_loss(final, target, start, mask)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("backend", runnable_backends())
def test_what_the_mask_leaves_out_has_no_gradient(backend):
    final, target, start, mask = CASE.inputs(Shape(g=3, p=1021, mask="shared"), seed=3)
    with running_on(backend):
        loss, grad = ops.trajectory_loss(final, target, start, mask)
        kept, kept_grad = ops.trajectory_loss(*(x[:, mask == 1] for x in (final, target, start)))
    assert bool((grad[:, mask == 0] == 0).all())
    torch.testing.assert_close(loss, kept)
    torch.testing.assert_close(grad[:, mask == 1], kept_grad)


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_student_at_the_start_has_loss_one(backend):
    _, target, start, _ = CASE.inputs(Shape(g=3, p=127), seed=4)
    with running_on(backend):
        assert ops.trajectory_loss(start, target, start)[0].tolist() == [1.0] * 3
        loss, grad = ops.trajectory_loss(target, target, start)
    assert loss.tolist() == [0.0] * 3
    assert not grad.any()


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_row_does_not_depend_on_its_neighbours(backend):
    final, target, start, mask = CASE.inputs(Shape(g=3, p=1021, mask="own"), seed=5)
    with running_on(backend):
        together = ops.trajectory_loss(final, target, start, mask)
        alone = [ops.trajectory_loss(final[g], target[g], start[g], mask[g]) for g in range(3)]
    assert all(torch.equal(together[i], torch.stack([row[i] for row in alone])) for i in range(2))


@pytest.mark.parametrize("mask", ["none", "shared", "own"])
def test_one_thread_and_two_give_the_same_bits(mask):
    inputs = CASE.inputs(Shape(g=3, p=70001, mask=mask), seed=6)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(CASE.op(*inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_second_run_gives_the_same_bits(backend):
    inputs = CASE.inputs(Shape(g=3, p=8193, mask="own"), seed=7)
    with running_on(backend):
        first, again = CASE.op(*inputs), CASE.op(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


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
            match=r"^trajectory_loss: expected start and target to differ where the mask is 1, got equal parameters in row 1; "
            r"the expert snapshots alias each other \(store clones\), are the same epoch, or the mask is empty$",
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
        ({2: torch.randn(4)}, r"got torch.float32 \[3, 4\], \[3, 4\] and \[4\]"),
        ({2: torch.randn(3, 4, dtype=torch.float64)}, r"convert with .to\(final\)"),
        (
            {3: torch.ones(3)},
            r"expected mask \[4\] or \[3, 4\], got \[3\]; pass one number, 0 or 1, per parameter",
        ),
        (
            {3: torch.ones(4, dtype=torch.bool)},
            r"expected mask like final \(torch.float32 on cpu\), got torch.bool",
        ),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = [torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4), None]
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(ShapeError, match=message):
        ops.trajectory_loss(*arguments)


def test_a_graph_is_refused():
    final = torch.randn(4, requires_grad=True)
    with pytest.raises(NotDifferentiableError, match="expected inputs without requires_grad"):
        ops.trajectory_loss(final, torch.randn(4), torch.randn(4))
