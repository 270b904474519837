"""What is special about group_norm_silu: without modulation, constant groups, any layout."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdistill import ops
from kdistill.errors import ConfigError, ShapeError
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case
from kdistill.testing.cases.group_norm_silu import eager
from tests.ops.moving import LAYOUTS, moved

CASE = case("group_norm_silu")


# h and w: of few pixels the gradients cancel to rounding
@given(
    n=st.integers(0, 3), c=st.integers(1, 40), h=st.integers(2, 7), w=st.integers(3, 9),
    layout=st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_any_shape_stride_and_alignment(n, c, h, w, layout):
    shape = Shape(n=n, c=c, h=h, w=w)
    x, *rows = CASE.inputs(shape, seed=0)
    CASE.check((moved(x, layout), *rows), shape)


@pytest.mark.parametrize("backend", runnable_backends())
def test_it_is_the_function_of_pytorch_with_and_without_modulation(backend):
    x, weight, bias, modulation = CASE.inputs(
        Shape(n=3, c=12, h=5, w=4), seed=3, dtype=torch.float64
    )
    for inputs, wrt in (((x, weight, bias), (0, 1, 2)), ((x, weight, bias, modulation), None)):
        with running_on(backend):
            got = CASE.with_gradients(CASE.op, inputs, wrt=wrt)
        torch.testing.assert_close(got, CASE.with_gradients(eager, inputs, wrt=wrt))


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_group_of_equal_pixels_has_finite_gradients(backend):
    x, *rows = CASE.inputs(Shape(n=2, c=8, h=3, w=5), seed=4)
    x[1] = 300.7
    with running_on(backend):
        out, *grads = CASE.with_gradients(CASE.op, (x, *rows))
    assert all(torch.isfinite(t).all() for t in (out, *grads))
    scale, shift = rows[2][1].chunk(2)
    expected = F.silu(rows[1] * (1.0 + scale) + shift)[:, None, None].expand(8, 3, 5)
    torch.testing.assert_close(out[1], expected, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_large_activation_is_the_identity_and_a_negative_one_is_zero(backend):
    x = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    bias = torch.tensor([2000.0, -2000.0, 80.0, -80.0])
    with running_on(backend):
        out, dx, _, dbias = CASE.with_gradients(CASE.op, (x, torch.ones(4), bias), wrt=(0, 1, 2))
    assert torch.isfinite(dx).all() and torch.equal(out[:, 1], torch.zeros(2, 3, 3))
    assert float(dbias[1]) == 0.0 and float(out[:, 0].min()) > 1990.0


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_nan_stays_in_its_group(backend):
    x, *rows = CASE.inputs(Shape(n=2, c=16, h=3, w=5), seed=5)
    x[1, 9, 1, 1] = float("nan")
    with running_on(backend):
        out = CASE.op(x, *rows)
    assert torch.isnan(out[1, 8:]).all() and torch.isfinite(out[1, :8]).all()
    assert torch.isfinite(out[0]).all()


def test_sizes_that_do_not_fit_are_refused():
    x, weight, bias, modulation = CASE.inputs(Shape(n=2, c=6, h=3, w=3), seed=6)
    with pytest.raises(ShapeError, match=r"C divisible by groups, got C=6, groups=4; use fewer"):
        ops.group_norm_silu(x, weight, bias, groups=4)
    with pytest.raises(ShapeError, match=r"expected modulation torch.float32 \[2, 12\]"):
        ops.group_norm_silu(x, weight, bias, modulation[:, :6], groups=2)
    with pytest.raises(ShapeError, match=r"x \[N, C, H, W\]"):
        ops.group_norm_silu(x[0], weight, bias, groups=2)
    with pytest.raises(ConfigError, match="expected eps > 0"):
        ops.group_norm_silu(x, weight, bias, groups=2, eps=0.0)
