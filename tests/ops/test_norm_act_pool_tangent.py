"""The tangents of norm_act_pool: value and derivative of both passes, in one fused pass each."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill.backends.reference import norm_act_pool as reference
from kdistill.ops.norm_act_pool import (
    norm_act_pool_bwd,
    norm_act_pool_bwd_tangent,
    norm_act_pool_fwd,
    norm_act_pool_tangent,
)
from kdistill.testing.backends import instruction_set, isas, runnable_backends, running_on
from kdistill.testing.cases import Shape, case
from kdistill.testing.cases.norm_act_pool import forward_over_reverse
from kdistill.testing.tolerance import assert_close_enough, to_float64
from tests.ops.moving import moved

# torch.func.jvp's own doing, the first time
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)
CASE = case("norm_act_pool").tangents
NAMES = ("out", "out_dot", "dx", "dx_dot", "dweight", "dweight_dot", "dbias", "dbias_dot")
STATISTICS = ("mean", "rstd", "x_dot_mean", "x_dot_proj")


def rows(parameter):
    return parameter if parameter.ndim == 2 else parameter[None]


def oracle(x, x_dot, weight, weight_dot, bias, bias_dot, grad, grad_dot):
    """Forward-over-reverse of the reference by ``torch.func``, in the order of ``NAMES``."""

    def value_and_pull_back(x, weight, bias, grad):
        out, vjp = torch.func.vjp(lambda *a: reference.norm_act_pool(*a, 1e-5)[0], x, weight, bias)
        return out, *vjp(grad)

    primal, tangent = torch.func.jvp(
        value_and_pull_back,
        (x, rows(weight), rows(bias), grad),
        (x_dot, rows(weight_dot), rows(bias_dot), grad_dot),
    )
    return tuple(t for pair in zip(primal, tangent, strict=True) for t in pair)


def assert_agree(got, expected, tolerance):
    for name, a, b in zip(NAMES, got, expected, strict=True):
        assert a.shape == b.shape, name
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("shape", [*CASE.shapes, CASE.tiny], ids=str)
def test_the_reference_is_forward_over_reverse(shape):
    inputs = CASE.inputs(shape, seed=0, dtype=torch.float64)
    assert_agree(CASE.reference(*inputs), oracle(*inputs), 1e-10)


@pytest.mark.parametrize("shape", CASE.shapes, ids=str)
def test_the_reference_is_the_derivative_of_its_own_value(shape):
    # statistics included: the derivative of mean and rstd is what x_dot_mean and x_dot_proj stand
    # for
    x, x_dot, weight, weight_dot, bias, bias_dot, *_ = CASE.inputs(
        shape, seed=1, dtype=torch.float64
    )
    weight, weight_dot, bias, bias_dot = (rows(p) for p in (weight, weight_dot, bias, bias_dot))
    out, out_dot, mean, rstd, x_dot_mean, x_dot_proj = reference.norm_act_pool_tangent(
        x, x_dot, weight, weight_dot, bias, bias_dot, 1e-5
    )
    values, tangents = torch.func.jvp(
        lambda *a: reference.norm_act_pool(*a, 1e-5),
        (x, weight, bias),
        (x_dot, weight_dot, bias_dot),
    )
    got = ((out, mean, rstd), (out_dot, x_dot_mean, -rstd.square() * x_dot_proj))
    for a, b in zip((t for pair in got for t in pair), (*values, *tangents), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "shape", CASE.shapes[1:], ids=str
)  # not the first: a mean of six numbers cancels to rounding
@pytest.mark.parametrize("backend", runnable_backends())
def test_statistics_match_the_float64_reference(backend, shape, dtype):
    inputs = CASE.inputs(shape, seed=3, dtype=dtype)[:6]
    with running_on(backend):
        got = norm_act_pool_tangent(*inputs)[2:]
    eager, truth = (
        reference.norm_act_pool_tangent(x, x_dot, *map(rows, parameters), 1e-5)[2:]
        for x, x_dot, *parameters in (inputs, to_float64(inputs))
    )
    for name, ours, same, true in zip(STATISTICS, got, eager, truth, strict=True):
        assert_close_enough(ours, same, true, CASE.depth(shape), name)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_are_those_without_a_tangent_on_every_instruction_set(isa, dtype):
    with instruction_set(isa), running_on("cpu"):
        for shape in CASE.shapes:
            assert_values_are_those_without_a_tangent(CASE.inputs(shape, seed=2, dtype=dtype))


def assert_values_are_those_without_a_tangent(inputs):
    x, x_dot, weight, weight_dot, bias, bias_dot, grad, grad_dot = inputs
    out, mean, rstd = norm_act_pool_fwd(x, weight, bias)
    expected = (out, mean, rstd, *norm_act_pool_bwd(grad, x, weight, bias, mean, rstd))
    out, _, *saved = norm_act_pool_tangent(x, x_dot, weight, weight_dot, bias, bias_dot)
    results = norm_act_pool_bwd_tangent(grad, grad_dot, x, x_dot, weight, weight_dot, bias, *saved)
    names = ("out", "mean", "rstd", "dx", "dweight", "dbias")
    for name, a, b in zip(names, (out, *saved[:2], *results[::2]), expected, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", CASE.shapes, ids=str)
@pytest.mark.parametrize("backend", runnable_backends())
def test_values_are_those_without_a_tangent_bit_by_bit(backend, shape, dtype):
    with running_on(backend):
        assert_values_are_those_without_a_tangent(CASE.inputs(shape, seed=4, dtype=dtype))


# h >= 4: in an image that is one window the gradients cancel to rounding
@given(
    n=st.integers(0, 3), groups=st.integers(0, 2), c=st.integers(1, 70), h=st.integers(4, 9),
    w=st.integers(3, 9), layout=st.sampled_from(["contiguous", "strided", "misaligned"]),
)  # fmt: skip
def test_any_shape_stride_and_alignment(n, groups, c, h, w, layout):
    shape = Shape(n=n * max(groups, 1), c=c, h=h, w=w, g=groups)
    inputs = [moved(t, layout) if t.ndim == 4 else t for t in CASE.inputs(shape, seed=0)]
    CASE.check(tuple(inputs), shape)


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_single_window(backend):
    shape = Shape(n=2, c=3, h=2, w=2, g=0)
    inputs = CASE.inputs(shape, seed=5, dtype=torch.float64)
    with running_on(backend):
        assert_agree(CASE.op(*inputs), oracle(*inputs), 1e-10)


@pytest.mark.parametrize("backend", runnable_backends())
def test_each_group_of_images_has_its_own_row(backend):
    inputs = CASE.inputs(Shape(n=6, c=4, h=4, w=4, g=3), seed=6)
    with running_on(backend):
        together = CASE.op(*inputs)
        alone = [
            CASE.op(*(t[2 * g : 2 * g + 2] if t.ndim == 4 else t[g] for t in inputs))
            for g in range(3)
        ]
    for a, b in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(a, torch.cat(b))


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_large_mean_of_the_direction_keeps_its_digits(backend):
    shape = Shape(n=1, c=24, h=32, w=32, g=0, mean=100)
    x, x_dot, *rest = CASE.inputs(shape, seed=7)
    with running_on(backend):
        CASE.check((x, x_dot + 100, *rest), shape)


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_constant_channel_has_finite_derivatives(backend):
    x, x_dot, weight, weight_dot, bias, bias_dot, grad, grad_dot = CASE.inputs(
        Shape(n=2, c=3, h=5, w=4, g=0), seed=8
    )
    x[:, 1], bias[1] = 700.3, 0.5
    with running_on(backend):
        out, out_dot, _, _, x_dot_mean, x_dot_proj = norm_act_pool_tangent(
            x, x_dot, weight, weight_dot, bias, bias_dot
        )
        results = CASE.op(x, x_dot, weight, weight_dot, bias, bias_dot, grad, grad_dot)
    assert all(torch.isfinite(t).all() for t in results)
    assert torch.equal(out[:, 1], torch.full((2, 2, 2), 0.5))
    assert not x_dot_proj[:, 1].any()
    centred = x_dot[:, 1, :4] - x_dot_mean[:, 1, None, None]
    expected = (
        torch.nn.functional.avg_pool2d(weight[1] * centred / math.sqrt(1e-5), 2) + bias_dot[1]
    )
    torch.testing.assert_close(out_dot[:, 1], expected)


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_nan_pixel_is_seen_in_its_channel_and_nowhere_else(backend):
    inputs = CASE.inputs(Shape(n=2, c=3, h=4, w=4, g=0), seed=9)
    inputs[0][1, 2, 0, 0] = math.nan
    with running_on(backend):
        out, out_dot, dx, dx_dot, *_ = CASE.op(*inputs)
    for result in (out, out_dot, dx, dx_dot):
        assert result[1, 2].isnan().all()
        assert result.isnan().sum() == result[1, 2].numel()


@pytest.mark.parametrize("backend", runnable_backends())
def test_the_derivative_at_an_activation_of_zero_is_zero(backend):
    x, zero = torch.ones(1, 2, 4, 4), torch.zeros(2)
    with running_on(backend):
        results = CASE.op(
            *(x, torch.randn_like(x), torch.ones(2), torch.ones(2), zero, torch.ones(2)),
            *(torch.randn(1, 2, 2, 2), torch.randn(1, 2, 2, 2)),
        )
    for name, tensor in zip(NAMES, results, strict=True):
        assert not tensor.any(), name


def test_the_peer_of_the_benchmark_is_the_same_function():
    inputs = CASE.inputs(Shape(n=3, c=5, h=6, w=4, g=0), seed=13, dtype=torch.float64)
    assert_agree(forward_over_reverse(*inputs), oracle(*inputs), 1e-10)
