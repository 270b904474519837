import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdistill import ops
from kdistill.errors import ConfigError, NotDifferentiableError, ShapeError
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case
from kdistill.testing.cases.fir_bias_act import scale_after
from tests.ops.moving import LAYOUTS, moved

CASE = case("fir_bias_act")


@given(
    n=st.integers(0, 3), shared=st.booleans(), c=st.integers(1, 40), h=st.integers(2, 9),
    w=st.integers(2, 40), fir=st.integers(0, 1), layout=st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_any_shape_stride_and_alignment(n, shared, c, h, w, fir, layout):
    shape = Shape(n=n, m=1 if shared else n, c=c, h=h, w=w, fir=fir)
    x, *others = CASE.inputs(shape, seed=0)
    CASE.check((moved(x, layout), *others), shape)


@pytest.mark.parametrize("shape", [CASE.shapes[1], CASE.shapes[3], CASE.shapes[5]], ids=str)
@pytest.mark.parametrize("backend", runnable_backends())
def test_the_operators_of_the_published_network_are_the_same_function(backend, shape):
    inputs = CASE.inputs(shape, seed=3, dtype=torch.float64)
    with running_on(backend):
        got = CASE.with_gradients(CASE.op, inputs)
    for ours, theirs in zip(got, CASE.with_gradients(scale_after, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", runnable_backends())
def test_with_a_scale_alone_it_is_a_product(backend):
    x, scale = torch.randn(3, 5, 4, 6), torch.randn(3, 5)
    with running_on(backend):
        leaves = x.requires_grad_(), scale.requires_grad_()
        out = ops.fir_bias_act(*leaves)
        cotangent = torch.randn_like(out)
        dx, dscale = torch.autograd.grad(out, leaves, cotangent)
    assert torch.equal(out, x * scale[:, :, None, None])
    assert torch.equal(dx, cotangent * scale[:, :, None, None])
    torch.testing.assert_close(dscale, (cotangent * x).sum((2, 3)))


@pytest.mark.parametrize("backend", runnable_backends())
def test_derivatives_at_zero_and_at_the_clamp(backend):
    x = torch.tensor([0.0, -0.0, 1.0, 3.0, -3.0, -50.0]).reshape(1, 1, 1, 6).requires_grad_()
    with running_on(backend):
        out = ops.fir_bias_act(x, torch.ones(1, 1), slope=0.5, gain=2.0, clamp=4.0)
        (dx,) = torch.autograd.grad(out.sum(), x)
    assert out.flatten().tolist() == [0.0, 0.0, 2.0, 4.0, -3.0, -4.0]
    assert dx.flatten().tolist() == [1.0, 1.0, 2.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_nan_is_seen_where_the_filter_reaches(backend):
    x, scale, bias, noise, taps = CASE.inputs(Shape(n=2, m=1, c=3, h=8, w=8, fir=1), seed=5)
    x[1, 2, 0, 7] = math.nan
    with running_on(backend):
        bad = CASE.op(x, scale, bias, noise, taps).isnan()
    assert bad[1, 2, :2, 5:].all()
    assert bad.sum() == 4


def test_the_case_keeps_away_from_kinks():
    shape = CASE.bench_shapes[1]
    inputs = CASE.inputs(Shape(**{**vars(shape), "n": 1, "c": 3}), seed=11, dtype=torch.float64)
    out = CASE.op(*inputs)
    assert (out == 2.5).any()  # some are clamped
    x, scale, bias, noise, _ = inputs
    y = x * scale[:, :, None, None] + noise[:, None] + bias[:, None, None]
    assert y.abs().min() > 1e-3
    torch.testing.assert_close(out, (F.leaky_relu(y, 0.2) * math.sqrt(2.0)).clamp(-2.5, 2.5))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.randn(2, 3, 5)}, ShapeError, "expected x .N, C, H, W."),
        ({"x": torch.randn(2, 3, 1, 5)}, ShapeError, "with taps of H, W >= 2"),
        (
            {"scale": torch.randn(3)},
            ShapeError,
            r"expected scale torch.float32 \[2, 3\] on cpu, got .* \[3\] on cpu; expand it",
        ),
        (
            {"bias": torch.randn(2)},
            ShapeError,
            r"expected bias .* \[3\] on cpu, got .* \[2\] on cpu; expand it",
        ),
        (
            {"taps": torch.randn(4, 4)},
            ShapeError,
            r"expected taps .* \[4\] on cpu, got .* \[4, 4\] on cpu; filter before the op",
        ),
        ({"noise": torch.randn(1, 5, 5)}, ShapeError, r"expected noise torch.float32 \[1, 4, 4\]"),
        (
            {"noise": torch.randn(3, 4, 4)},
            ShapeError,
            r"noise \[1, h, w\] or \[2, h, w\], got 3 rows; draw it",
        ),
        ({"scale": torch.randn(2, 3, dtype=torch.float64)}, ShapeError, r"convert with .to\(x\)"),
        ({"slope": -0.1}, ConfigError, "slope in 0 to 1"),
        ({"gain": 0.0}, ConfigError, "gain > 0"),
        ({"clamp": 0.0}, ConfigError, "clamp > 0 or None"),
        ({"taps": torch.ones(4, requires_grad=True)}, NotDifferentiableError, "detach"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    tensors = {
        "x": torch.randn(2, 3, 5, 5),
        "scale": torch.randn(2, 3),
        "bias": torch.randn(3),
        "noise": None,
    }
    arguments = {**tensors, "taps": torch.ones(4), **change}
    with pytest.raises(error, match=message):
        ops.fir_bias_act(**arguments)
