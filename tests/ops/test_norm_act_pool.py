import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdistill import ops
from kdistill.errors import ConfigError, NotDifferentiableError, ShapeError
from kdistill.ops.norm_act_pool import norm_act_pool_bwd, norm_act_pool_fwd
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case
from kdistill.testing.cases.norm_act_pool import away_from_kinks
from tests.ops.moving import LAYOUTS, moved

CASE = case("norm_act_pool")


# w >= 3: in an image that is one window the gradients cancel to rounding
@given(
    n=st.integers(0, 3), rows=st.integers(0, 2), c=st.integers(1, 40), h=st.integers(2, 9),
    w=st.integers(3, 9), layout=st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_any_shape_stride_and_alignment(n, rows, c, h, w, layout):
    shape = Shape(n=n * max(rows, 1), c=c, h=h, w=w, g=rows)
    x, weight, bias = CASE.inputs(shape, seed=0)
    CASE.check((moved(x, layout), weight, bias), shape)


@pytest.mark.parametrize("backend", runnable_backends())
def test_torch_instance_norm_relu_pool_is_the_same_function(backend):
    x, weight, bias = CASE.inputs(Shape(n=2, c=5, h=6, w=8, g=0), seed=3, dtype=torch.float64)
    with running_on(backend):
        got = CASE.op(x, weight, bias)
    torch.testing.assert_close(
        got, F.avg_pool2d(F.relu(F.instance_norm(x, weight=weight, bias=bias)), 2)
    )


@pytest.mark.parametrize("backend", runnable_backends())
def test_each_group_of_images_has_its_own_row(backend):
    x, weight, bias = CASE.inputs(Shape(n=6, c=4, h=4, w=4, g=3), seed=4)
    with running_on(backend):
        together = CASE.with_gradients(CASE.op, (x, weight, bias))
        alone = [CASE.op(x[2 * g : 2 * g + 2], weight[g], bias[g]) for g in range(3)]
    torch.testing.assert_close(together[0], torch.cat(alone))
    assert together[2].shape == (3, 4)


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_constant_channel_gives_relu_of_bias_and_no_gradient_of_weight(backend):
    x = torch.randn(2, 3, 5, 4).contiguous(memory_format=torch.channels_last)
    x[:, 1] = torch.tensor([0.1, 700.3])[:, None, None]
    weight, bias = torch.tensor([1.0, 0.5, -2.0]), torch.tensor([0.1, 0.7, 0.3])
    with running_on(backend):
        out, dx, dweight, dbias = CASE.with_gradients(CASE.op, (x, weight, bias))
        _, mean, rstd = norm_act_pool_fwd(x, weight, bias)
    assert all(torch.isfinite(t).all() for t in (out, dx, dweight, dbias))
    assert torch.equal(mean[:, 1], x[:, 1, 0, 0])
    torch.testing.assert_close(rstd[:, 1], torch.full((2,), 1 / math.sqrt(1e-5)))
    assert torch.equal(out[:, 1], torch.full((2, 2, 2), 0.7))
    assert dweight[1] == 0


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_mean_of_a_thousand_deviations(backend):
    shape = Shape(n=1, c=24, h=32, w=32, g=0, mean=1000)
    with running_on(backend):
        CASE.check(CASE.inputs(shape, seed=12), shape)


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_nan_pixel_is_seen_in_its_channel_and_nowhere_else(backend):
    x, weight, bias = CASE.inputs(Shape(n=2, c=3, h=4, w=4, g=0), seed=5)
    x[1, 2, 0, 0] = math.nan
    with running_on(backend):
        bad = CASE.op(x, weight, bias).isnan()
    assert bad[1, 2].all()
    assert bad.sum() == 4


@pytest.mark.parametrize("backend", runnable_backends())
def test_gradient_at_an_activation_of_zero_is_zero(backend):
    x, zero = torch.ones(1, 2, 4, 4), torch.zeros(2)
    with running_on(backend):
        out, dx, dweight, dbias = CASE.with_gradients(CASE.op, (x, torch.ones(2), zero))
    for result in (out, dx, dweight, dbias):
        assert not result.any()


@pytest.mark.parametrize("backend", runnable_backends())
def test_the_pair_without_a_graph_is_the_op_and_its_backward(backend):
    inputs = CASE.inputs(CASE.shapes[1], seed=7)
    x, weight, bias = inputs
    with running_on(backend):
        expected = CASE.with_gradients(CASE.op, inputs, seed=8)
        grad = torch.randn(
            expected[0].shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64
        ).to(x)
        out, mean, rstd = norm_act_pool_fwd(x.contiguous(), weight, bias)
        got = (out, *norm_act_pool_bwd(grad, x.contiguous(), weight, bias, mean, rstd))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    with pytest.raises(NotDifferentiableError, match="requires_grad"):
        norm_act_pool_fwd(x.requires_grad_(), weight, bias)


def test_the_case_keeps_away_from_kinks():
    shape = Shape(n=2, c=3, h=8, w=8, g=0)
    x, weight, bias = CASE.inputs(shape, seed=11)
    y = F.instance_norm(x.double(), weight=weight.double(), bias=bias.double())
    assert y.abs().min() > 0.01
    assert torch.equal(away_from_kinks(x, weight, bias), x)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": torch.randn(4, 3, 5)},
            ShapeError,
            "expected x .N, C, H, W. with C >= 1 and H, W >= 2",
        ),
        ({"x": torch.randn(4, 3, 1, 5)}, ShapeError, "fewer blocks"),
        ({"weight": torch.randn(2)}, ShapeError, "one value per channel"),
        ({"bias": torch.randn(2, 3)}, ShapeError, "one value per channel"),
        (
            {"weight": torch.randn(3, 3), "bias": torch.randn(3, 3)},
            ShapeError,
            "same number of images",
        ),
        (
            {"weight": torch.randn(0, 3), "bias": torch.randn(0, 3)},
            ShapeError,
            "same number of images",
        ),
        ({"weight": torch.randn(3, dtype=torch.float64)}, ShapeError, r"convert with .to\(x\)"),
        ({"eps": 0.0}, ConfigError, "expected eps > 0, got 0.0"),
        ({"eps": math.nan}, ConfigError, "expected eps > 0, got nan"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {
        "x": torch.randn(4, 3, 4, 4),
        "weight": torch.randn(3),
        "bias": torch.randn(3),
        "eps": 1e-5,
        **change,
    }
    with pytest.raises(error, match=message):
        ops.norm_act_pool(
            arguments["x"], arguments["weight"], arguments["bias"], eps=arguments["eps"]
        )
