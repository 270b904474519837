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
from kdistill.testing.cases.filtered_lrelu import channels_first, taps_of
from tests.ops.moving import LAYOUTS, moved

CASE = case("filtered_lrelu")


@given(
    n=st.integers(0, 3), c=st.integers(1, 20), h=st.integers(1, 9), w=st.integers(1, 25),
    up=st.integers(1, 4), down=st.integers(1, 4), t=st.integers(0, 13), s=st.integers(0, 13),
    pads=st.tuples(*[st.integers(-3, 14)] * 2), layout=st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_any_shape_stride_alignment_and_padding(n, c, h, w, up, down, t, s, pads, layout):
    low, high = pads
    if min(h, w) * up + min(low, 0) + min(high, 0) < 0 or min(h, w) * up + low + high - max(
        t, 1
    ) + 1 < max(s, 1):
        low = high = t + s
    shape = Shape(n=n, c=c, h=h, w=w, up=up, down=down, t=t, s=s, low=low, high=high)
    x, *others = CASE.inputs(shape, seed=0)
    CASE.check((moved(x, layout), *others), shape)


def by_definition(x, bias, up_taps, down_taps, up, down, padding, slope, gain, clamp):
    """Return the op of one channel by its definition: true convolutions of the padded samples."""
    left, right, above, below = padding
    h, w = x.shape
    upsampled = torch.zeros(h * up, w * up, dtype=x.dtype)
    upsampled[::up, ::up] = up**2 * (x + bias)
    upsampled = F.pad(upsampled, (left, right, above, below))

    def filtered(z, taps):
        k = len(taps)
        rows = sum(taps[k - 1 - i] * z[i : z.shape[0] - k + 1 + i] for i in range(k))
        return sum(taps[k - 1 - i] * rows[:, i : rows.shape[1] - k + 1 + i] for i in range(k))

    z = filtered(upsampled, up_taps)
    z = (torch.where(z > 0, z, slope * z) * gain).clamp(-clamp, clamp)
    return filtered(z, down_taps)[::down, ::down]


@pytest.mark.parametrize("padding", [(9, 8, 7, 6), (-3, 4, 5, -2), (30, 0, 0, 31)])
@pytest.mark.parametrize(("up", "down"), [(2, 2), (4, 2), (1, 3)])
@pytest.mark.parametrize("backend", runnable_backends())
def test_it_is_what_the_paper_writes(backend, up, down, padding):
    x, bias = torch.randn(2, 3, 12, 13, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    taps = taps_of(6 * up) / 2, taps_of(5)
    numbers = {"slope": 0.3, "gain": 1.7, "clamp": 0.9}
    with running_on(backend):
        out = ops.filtered_lrelu(x, bias, *taps, up=up, down=down, padding=padding, **numbers)
    for n in range(2):
        for c in range(3):
            wanted = by_definition(x[n, c], bias[c], *taps, up, down, padding, **numbers)
            torch.testing.assert_close(out[n, c], wanted)


@pytest.mark.parametrize("backend", runnable_backends())
def test_the_derivative_is_that_of_the_operators_one_after_the_other(backend):
    inputs = CASE.inputs(CASE.shapes[2], seed=3, dtype=torch.float64)
    with running_on(backend):
        got = CASE.with_gradients(CASE.op, inputs)
    for ours, theirs in zip(got, CASE.with_gradients(channels_first, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", runnable_backends())
def test_without_filters_it_is_bias_and_nonlinearity(backend):
    x, bias = (
        torch.tensor([0.0, -0.0, 1.0, 3.0, -3.0, -50.0]).reshape(1, 1, 1, 6).requires_grad_(),
        torch.zeros(1),
    )
    with running_on(backend):
        out = ops.filtered_lrelu(x, bias, slope=0.5, gain=2.0, clamp=4.0)
        (dx,) = torch.autograd.grad(out.sum(), x)
    assert out.flatten().tolist() == [0.0, 0.0, 2.0, 4.0, -3.0, -4.0]
    assert dx.flatten().tolist() == [1.0, 1.0, 2.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_map_can_be_padded_and_cropped_without_filters(backend):
    x = torch.randn(2, 3, 4, 5)
    with running_on(backend):
        out = ops.filtered_lrelu(x, up=2, padding=(1, -2, -1, 3), slope=1.0)
    upsampled = torch.zeros(2, 3, 8, 10)
    upsampled[:, :, ::2, ::2] = 4.0 * x
    assert torch.equal(out, F.pad(upsampled, (1, -2, -1, 3)))


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_nan_is_seen_where_the_filters_reach_and_has_no_effect_elsewhere(backend):
    x, bias, *others = CASE.inputs(
        Shape(n=2, c=3, h=9, w=9, up=2, down=2, t=4, s=4, low=2, high=2), seed=5
    )
    with running_on(backend):
        good = CASE.op(x, bias, *others)
        x[1, 2, 4, 4] = math.nan
        out = CASE.op(x, bias, *others)
    bad = out.isnan()
    assert bad[1, 2].sum() in (4, 6, 9, 12, 16)
    assert not bad[0].any()
    assert not bad[1, :2].any()
    assert torch.equal(out[~bad], good[~bad])


@pytest.mark.parametrize("backend", runnable_backends())
def test_the_value_does_not_depend_on_whether_a_gradient_will_be_wanted(backend):
    x, *others = CASE.inputs(CASE.shapes[1], seed=8)
    with running_on(backend):
        assert torch.equal(CASE.op(x, *others), CASE.op(x.clone().requires_grad_(), *others))


@pytest.mark.parametrize("backend", runnable_backends())
def test_two_bits_are_saved_of_every_upsampled_value(backend):
    x = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 1, 5)
    with running_on(backend):
        _, mask = torch.ops.kdistill.filtered_lrelu(
            x, None, None, None, 1, 1, [0, 0, 0, 0], 0.5, 1.0, 2.0, True
        )
    assert mask.flatten().tolist() == [2 + (1 << 6), 3]


def test_some_upsampled_values_of_the_case_are_clamped_and_none_is_near_a_kink():
    x, bias, up_taps, _, up, _, padding = CASE.inputs(CASE.shapes[1], seed=11, dtype=torch.float64)
    z = ops.filtered_lrelu(x, bias, up_taps, up=up, padding=padding, slope=1.0)
    for edge in (0.0, 0.4 / math.sqrt(2.0), -2.0 / math.sqrt(2.0)):
        assert (z > edge).any()
        assert (z < edge).any()
        assert (z - edge).abs()[z != 0].min() > 1e-5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": torch.randn(2, 3, 5)},
            ShapeError,
            "expected x .N, C, H, W., got .* add the dimensions",
        ),
        (
            {"bias": torch.randn(2)},
            ShapeError,
            r"expected bias torch.float32 \[3\] .* \[2\] on cpu; pass one number per channel",
        ),
        (
            {"up_taps": torch.randn(4, 4)},
            ShapeError,
            r"expected taps \[T\], got \[4, 4\]; filter outside the op",
        ),
        ({"down_taps": torch.randn(0)}, ShapeError, r"got \[0\]"),
        (
            {"down_taps": torch.randn(12)},
            ShapeError,
            "upsampled feature maps that hold the taps, got 7 x 7 from",
        ),
        ({"x": torch.randn(2, 3, 0, 5)}, ShapeError, "pad more or crop less"),
        (
            {"padding": (-11, 20, 0, 0)},
            ShapeError,
            r"padding \[-11, 20, 0, 0\]; pad more or crop less",
        ),
        ({"up_taps": torch.ones(4, dtype=torch.float64)}, ShapeError, r"convert with .to\(x\)"),
        ({"up": 0}, ConfigError, "up and down from 1 on"),
        ({"padding": (1, 1)}, ConfigError, r"left, right, above, below\), got 2, 2 and \[1, 1\]"),
        ({"slope": -0.1}, ConfigError, "slope in 0 to 1"),
        ({"gain": 0.0}, ConfigError, "gain > 0"),
        ({"clamp": 0.0}, ConfigError, "clamp > 0 or None"),
        ({"up_taps": torch.ones(4, requires_grad=True)}, NotDifferentiableError, "detach"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    tensors = {
        "x": torch.randn(2, 3, 5, 5),
        "bias": torch.randn(3),
        "up_taps": torch.ones(4),
        "down_taps": torch.ones(4),
    }
    arguments = {**tensors, "up": 2, "down": 2, **change}
    with pytest.raises(error, match=message):
        ops.filtered_lrelu(**arguments)
