import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill import ops
from kdistill.errors import NotDifferentiableError, ShapeError
from kdistill.ops.class_mean_sqdist import class_mean_sqdist_and_grad
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case

CASE = case("class_mean_sqdist")


@given(
    n=st.integers(0, 40),
    m=st.integers(0, 20),
    f=st.integers(0, 70),
    k=st.integers(1, 9),
    pad=st.integers(1, 3),
)
def test_any_shape_stride_and_alignment(n, m, f, k, pad):
    shape = Shape(n=n, m=m, f=f, k=k)
    _, real_labels, _, syn_labels, _, _ = CASE.inputs(shape, seed=0)
    real, syn = (
        torch.randn(n, f + pad)[:, pad:],
        torch.randn(m, f + pad)[:, :f],
    )  # strided; real misaligned as well
    CASE.check((real, real_labels, syn, syn_labels, k, None), shape)


def test_a_class_absent_on_either_side_contributes_nothing():
    real, syn = torch.ones(3, 4), torch.zeros(2, 4)
    value = ops.class_mean_sqdist(real, torch.tensor([0, 0, 1]), syn, torch.tensor([1, 2]), 4)
    assert value.item() == 4.0  # class 1 alone stands on both sides


def test_real_gradient_is_not_computed_when_not_asked_for():
    real, real_labels, syn, syn_labels, k, weights = CASE.inputs(CASE.shapes[1], seed=0)
    syn.requires_grad_()
    ops.class_mean_sqdist(real, real_labels, syn, syn_labels, k, weights).backward()
    assert syn.grad is not None
    assert real.grad is None


@pytest.mark.parametrize("backend", runnable_backends())
@pytest.mark.parametrize("shape", CASE.shapes, ids=str)
def test_without_a_graph_the_bits_are_the_same(backend, shape):
    inputs = CASE.inputs(shape, seed=4)
    real, real_labels, syn, syn_labels, k, weights = inputs
    with running_on(backend):
        value, grad_syn = class_mean_sqdist_and_grad(*inputs)
        leaf = syn.clone().requires_grad_()
        expected = ops.class_mean_sqdist(real, real_labels, leaf, syn_labels, k, weights)
        (expected_grad,) = torch.autograd.grad(expected, leaf)
    assert torch.equal(value, expected.detach())
    assert torch.equal(grad_syn, expected_grad)


def test_a_gradient_of_many_pages():
    n, f = (
        (33 << 20) // (4 * 2048),
        2048,
    )  # past the size from which memory is fresh and huge pages are asked for
    real, labels = torch.randn(n, f, requires_grad=True), torch.arange(n) % 3
    syn, syn_labels = torch.randn(6, f), torch.arange(6) % 3
    (grad,) = torch.autograd.grad(ops.class_mean_sqdist(real, labels, syn, syn_labels, 3), real)
    for c in range(3):
        mine = labels == c
        diff = real.detach()[mine].double().mean(0) - syn[syn_labels == c].double().mean(0)
        torch.testing.assert_close(
            grad[mine].double(),
            (2 * diff / mine.sum()).expand(int(mine.sum()), f),
            rtol=1e-4,
            atol=1e-8,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(3, 4, 5)}, "flatten features"),
        ({2: torch.randn(2, 5)}, "flatten features"),
        ({2: torch.randn(2, 4, dtype=torch.float64)}, r"convert with .to\(real\)"),
        ({1: torch.tensor([0, 1])}, "one class index per row"),
        ({3: torch.tensor([0, 9])}, r"expected syn_labels in 0..1, got 0..9"),
        ({5: torch.randn(2, 3)}, "one row of weights per class"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = [
        torch.randn(3, 4),
        torch.tensor([0, 1, 1]),
        torch.randn(2, 4),
        torch.tensor([0, 1]),
        2,
        None,
    ]
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(ShapeError, match=message):
        ops.class_mean_sqdist(*arguments)


def test_weights_are_constants():
    inputs = list(CASE.inputs(CASE.shapes[1], seed=0))
    inputs[5].requires_grad_()
    with pytest.raises(NotDifferentiableError, match="detach"):
        ops.class_mean_sqdist(*inputs)
